"""A request inside the engine, and what it tells those who wait for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from expertmesh_controller.gateway.batching.roster import Sequence
from expertmesh_controller.gateway.batching.tapping import Tap
from expertmesh_controller.gateway.sampling.choosing import Choice, Draw
from expertmesh_controller.gateway.sampling.options import GREEDY, SamplingOptions

if TYPE_CHECKING:
    from opentelemetry.trace import Span

__all__ = [
    "Ended",
    "Event",
    "Facts",
    "Failed",
    "Job",
    "Mailbox",
    "Picked",
    "Reason",
    "Request",
    "Scored",
    "Scoring",
    "Ticket",
]


class Reason(Enum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Request:
    """Checked input of the engine. `resumed_ids` were generated before and count as answer; `deadline` is monotonic."""

    prompt_ids: tuple[int, ...]
    max_tokens: int
    deadline: float
    sampling: SamplingOptions = GREEDY
    resumed_ids: tuple[int, ...] = ()
    eos_ids: frozenset[int] = frozenset()

    @property
    def known_tokens(self) -> int:
        """What is read in before the first new token."""
        return len(self.prompt_ids) + len(self.resumed_ids)


@dataclass(frozen=True, slots=True)
class Scoring:
    """A text of two or more tokens: how likely is each of `ids` from `first` on? `first` is at least 1.

    The last token is never read in; with `first` behind it nothing is asked, and the rest is read in for the `tap`.
    """

    ids: tuple[int, ...]
    first: int
    deadline: float
    top_logprobs: int = 0
    tap: Tap | None = None

    @property
    def known_tokens(self) -> int:
        """What is read in."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Picked:
    """A token of the answer; position 0 is the first one after the prompt."""

    position: int
    choice: Choice


@dataclass(frozen=True, slots=True)
class Scored:
    """The next tokens of a scored text, as many as one step read in."""

    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of an answer."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a request that will not be answered."""

    error: Exception


Event = Picked | Scored | Ended | Failed


@dataclass(slots=True)
class Facts:
    """Measured while a request runs: monotonic seconds, and feed-forward neurons evaluated as a sum of row shares.

    `ended` is set when the last event has reached the front, or the request has left without one. `started` is set by
    the engine's thread when it is so; the rest by the loop's, before it passes on the events that go with it.
    """

    admitted: float
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    ended: bool = False
    active_rows: float = 0.0
    rows: int = 0

    @property
    def active_share(self) -> float:
        return self.active_rows / self.rows if self.rows else 0.0

    def went_through(self, active_rows: float, rows: int) -> None:
        """Count rows of one step; `active_rows` is the sum of their shares."""
        self.active_rows += active_rows
        self.rows += rows


class Mailbox(asyncio.Queue[Event]):
    """Events on their way to a reader; counts those that were taken."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0

    def _get(self) -> Event:
        self.taken += 1
        return super()._get()

    def throw_away(self) -> None:
        """Forget what was not read."""
        while not self.empty():
            self.get_nowait()


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the front holds of a submitted request; fairness between clients goes by the name `client`.

    Events wait here however slowly they are read: there are at most `max_tokens` small ones, and the engine goes on.
    A reader that takes nothing for long is given up (see `reading`).
    """

    key: int
    facts: Facts
    events: Mailbox = field(default_factory=Mailbox)
    client: str = ""
    trace: Span | None = None
    """The span of a request that is traced."""


class Job:
    """A running request: its tokens so far in one int64 array."""

    def __init__(self, request: Request, ticket: Ticket) -> None:
        self.request, self.ticket = request, ticket
        known = (*request.prompt_ids, *request.resumed_ids)
        self._ids = np.zeros(len(request.prompt_ids) + max(request.max_tokens, len(request.resumed_ids)), np.int64)
        self._ids[: len(known)] = known
        self._count = len(known)

    @property
    def position(self) -> int:
        """Of the next token in the answer."""
        return self._count - len(self.request.prompt_ids)

    @property
    def progress(self) -> str:
        return f"{self.position} of at most {self.request.max_tokens} tokens"

    @property
    def last_id(self) -> int:
        return int(self._ids[self._count - 1])

    def ids(self, start: int, count: int) -> NDArray[np.int64]:
        return self._ids[start : start + count]

    def sequence(self) -> Sequence:
        ticket = self.ticket
        return Sequence(ticket.key, self._count, ticket.facts.admitted, self.request.deadline, client=ticket.client)

    def draw(self) -> Draw:
        return Draw(self.request.sampling, self.position, self._ids[: self._count])

    def take(self, choice: Choice) -> Reason | None:
        """Add a token; why the answer ends with it, or None. The end-of-sequence token is no part of it."""
        request = self.request
        if choice.token_id in request.eos_ids and not request.sampling.ignore_eos:
            return Reason.STOP
        self._ids[self._count] = choice.token_id
        self._count += 1
        return Reason.LENGTH if self.position >= request.max_tokens else None
