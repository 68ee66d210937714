"""What the next step runs: everyone who decodes, and at most one chunk of one prompt."""

from __future__ import annotations

from dataclasses import dataclass

from expertmesh_controller.gateway.batching.roster import Roster, Sequence

__all__ = ["ChunkPlan", "StepPlan", "advanced", "planned"]

AGEING_TOKENS_PER_S = 256.0
"""How much shorter a prompt counts per second of waiting, so that short newcomers cannot hold it up for ever."""


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """`count` tokens of the sequence `key`, whose first `start` are cached. After a prompt's end comes an answer."""

    key: int
    slot: int
    start: int
    count: int
    ends_prompt: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Keys in row order; the chunk's rows come after the decode rows."""

    decode_keys: tuple[int, ...]
    chunk: ChunkPlan | None
    deadline: float

    @property
    def sampled_keys(self) -> tuple[int, ...]:
        """Sequences that get a token from this step, in the order of the rows of logits."""
        ends = self.chunk is not None and self.chunk.ends_prompt
        return (*self.decode_keys, self.chunk.key) if self.chunk is not None and ends else self.decode_keys

    @property
    def keys(self) -> tuple[int, ...]:
        return self.decode_keys if self.chunk is None else (*self.decode_keys, self.chunk.key)


def planned(roster: Roster, now: float, chunk_tokens: int) -> StepPlan | None:
    """The next step, or None if nobody has a slot. It may take until the first deadline of those in it."""
    chosen = min(roster.prefilling, key=lambda s: _urgency(s, now), default=None)
    running = roster.decoding if chosen is None else (*roster.decoding, chosen)
    if not running:
        return None
    deadline = min(s.deadline for s in running)
    chunk = None if chosen is None else _chunk(chosen, chunk_tokens)
    return StepPlan(tuple(s.key for s in roster.decoding), chunk, deadline)


def advanced(roster: Roster, plan: StepPlan) -> Roster:
    """After the step, before anyone is promoted or removed: more is cached, and whoever got a token has one more."""
    decoding = tuple([s.fed() for s in roster.decoding])
    chunk, prefilling = plan.chunk, roster.prefilling
    if chunk is not None:
        prefilling = tuple(_read_in(s, chunk) if s.key == chunk.key else s for s in prefilling)
    return Roster(roster.slots, roster.waiting, prefilling, decoding, roster.settled)


def _urgency(sequence: Sequence, now: float) -> tuple[float, int]:
    """Shortest remaining prompt first, less what it gained by waiting; then first come, first served."""
    return (sequence.remaining_tokens - AGEING_TOKENS_PER_S * (now - sequence.arrived), sequence.key)


def _chunk(sequence: Sequence, chunk_tokens: int) -> ChunkPlan:
    count = min(chunk_tokens, sequence.remaining_tokens)
    ends = count == sequence.remaining_tokens and not sequence.scored
    return ChunkPlan(sequence.key, sequence.slot, sequence.cached, count, ends)


def _read_in(sequence: Sequence, chunk: ChunkPlan) -> Sequence:
    return sequence._replace(cached=sequence.cached + chunk.count, tokens=sequence.tokens + chunk.ends_prompt)
