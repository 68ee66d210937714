"""What a step gave, on its way out: noted by the engine's thread, made into events and facts by the loop's.

The next step only has to know who goes on, so it does not wait for the rest, which is done while its graph runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from expertmesh_controller.gateway.batching.jobs import Ended, Event, Facts, Picked, Reason, Ticket
from expertmesh_controller.gateway.batching.planning import StepPlan
from expertmesh_controller.gateway.batching.tally import Tally
from expertmesh_controller.gateway.sampling.choosing import Choice

__all__ = ["Handout", "Parcel", "Taken", "opened"]


class Taken(NamedTuple):
    """What an answer got from a step: the token of `position`, and why it ends with it; None: it goes on."""

    ticket: Ticket
    position: int
    choice: Choice
    reason: Reason | None


@dataclass(frozen=True, slots=True)
class Handout:
    """A step that was made at monotonic time `now`; nothing in it changes any more.

    `tickets` are those of `plan.keys`; `active` float64 [rows] is the share of neurons that each row went through.
    """

    now: float
    plan: StepPlan
    tickets: Sequence[Ticket]
    active: NDArray[np.float64]
    taken: Sequence[Taken]


Parcel = tuple[Ticket, Event | None] | Handout
"""A step, or an event for a ticket; None says that a cancelled request has left."""


def opened(parcel: Parcel, tally: Tally) -> Iterable[tuple[Ticket, Event | None]]:
    """The events in a parcel, in order. Facts and `tally` have all of the step before anyone can read of it.

    Call it once for each parcel, in the order of the steps, and in one thread: facts belong to that.
    """
    if not isinstance(parcel, Handout):
        return (parcel,)
    _count_rows(parcel)
    for taken in parcel.taken:
        _take_times(taken.ticket.facts, parcel.now, tally)
    return _events(parcel.taken)


def _events(taken: Sequence[Taken]) -> Iterator[tuple[Ticket, Event]]:
    for ticket, position, choice, reason in taken:
        if reason is not Reason.STOP:  # what stops an answer is no part of it
            yield ticket, Picked(position, choice)
        if reason is not None:
            yield ticket, Ended(reason)


def _count_rows(given: Handout) -> None:
    decoding, chunk = len(given.plan.decode_keys), given.plan.chunk
    for ticket, share in zip(given.tickets[:decoding], given.active[:decoding].tolist(), strict=True):
        ticket.facts.went_through(share, rows=1)
    if chunk is not None:
        given.tickets[-1].facts.went_through(float(given.active[decoding:].sum()), chunk.count)


def _take_times(facts: Facts, now: float, tally: Tally) -> None:
    if facts.last_token is not None:
        tally.token_took(1000 * (now - facts.last_token))
    if facts.first_token is None:
        facts.first_token = now
        tally.first_token_took(1000 * (now - facts.admitted))
    facts.last_token = now
