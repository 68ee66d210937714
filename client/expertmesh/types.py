"""What calls return: frozen values without any trace of the wire."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """An alternative at one position: natural logarithm of its probability."""

    id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. `text` may be empty while a character or a possible stop string is incomplete."""

    position: int
    id: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer.

    `text` is all of it, `ttft_ms` the time from admission to the first token as the gateway measured it, `active_share`
    the share of feed-forward neurons that were evaluated, `lossy` what touched the answer that is not exact,
    `resumed` how often the SDK continued a broken stream.
    """

    text: str
    tokens: tuple[Token, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    ttft_ms: float
    total_ms: float
    queue_ms: float
    precision: str
    numerics: str
    active_share: float
    lossy: tuple[str, ...]
    request_id: str
    resumed: int = 0

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token.id for token in self.tokens)


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of a given text. `logprob` is None where nothing stands before it; `piece` is the vocabulary's spelling.

    `top_logprobs` are the most likely tokens at its place, best first.
    """

    id: int
    piece: str
    logprob: float | None
    top_logprobs: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a given text is: natural logarithms, one per token of the text (not of its prompt).

    `total_logprob` sums those that exist, `active_share` is the share of feed-forward neurons that were evaluated,
    `lossy` what touched the values that is not exact, `total_ms` the time from admission as the gateway measured it.
    """

    tokens: tuple[ScoredToken, ...]
    total_logprob: float
    prompt_tokens: int
    precision: str
    numerics: str
    active_share: float
    lossy: tuple[str, ...]
    queue_ms: float
    total_ms: float
    request_id: str

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(token.id for token in self.tokens)

    @property
    def pieces(self) -> tuple[str, ...]:
        return tuple(token.piece for token in self.tokens)

    @property
    def logprobs(self) -> tuple[float | None, ...]:
        return tuple(token.logprob for token in self.tokens)

    @property
    def perplexity(self) -> float:
        """exp(-mean log probability) over the tokens that have one; NaN if none has."""
        counted = sum(token.logprob is not None for token in self.tokens)
        return math.exp(-self.total_logprob / counted) if counted else math.nan


@dataclass(frozen=True, slots=True)
class Tokenization:
    """Token ids and the text that each stands for."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of the mesh. `ready` means that every expert has a live instance."""

    name: str
    family: str
    precision: str
    context_tokens: int
    bundle_digest: str
    ready: bool


@dataclass(frozen=True, slots=True)
class Node:
    """A worker as the control loop sees it; `rows` counts rows served since its start."""

    worker_id: str
    generation: str
    state: str
    cores: int
    memory_bytes: int
    budget_bytes: int
    resident_bytes: int
    experts: int
    rows: int
    speed_rows_per_s: float
    heartbeat_age_ms: int
    providers: tuple[str, ...]
    endpoints: tuple[str, ...]
    version: str = ""


@dataclass(frozen=True, slots=True)
class ExpertPlacement:
    """Where one expert of one model lives; `rows` went to it since the controller started."""

    model: str
    layer: int
    index: int
    precision: str
    resident_bytes: int
    worker_ids: tuple[str, ...]
    rows: int = 0


@dataclass(frozen=True, slots=True)
class Readiness:
    """The mesh once it is ready. `missing_bytes` is 0 then; before, resident bytes for which no worker has room."""

    workers: int
    experts: int
    instances: int
    missing_bytes: int
