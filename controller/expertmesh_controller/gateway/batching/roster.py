"""Who waits, who is being read in, who is answered, and in which slot: plain frozen data.

Slots 0 .. B - 1 belong to the B sequences that decode, without a gap, because a decode batch is a prefix of the cache.
Prompts are read in behind them and join them when they are whole. Slot `slots` is spare.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

__all__ = ["Move", "Roster", "Sequence", "admitted", "promoted", "removed"]


@dataclass(frozen=True, slots=True)
class Sequence:
    """`tokens` are known (prompt, then answer), `cached` of them are in the cache. Times are monotonic seconds."""

    key: int
    tokens: int
    arrived: float
    deadline: float
    cached: int = 0
    slot: int = -1

    @property
    def remaining_tokens(self) -> int:
        return self.tokens - self.cached


@dataclass(frozen=True, slots=True)
class Move:
    """Copy the first `tokens` positions of a slot's cache. Moves are done in order."""

    source: int
    target: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Roster:
    """`decoding[i]` has slot i."""

    slots: int
    waiting: tuple[Sequence, ...] = ()
    prefilling: tuple[Sequence, ...] = ()
    decoding: tuple[Sequence, ...] = field(default=())

    @property
    def everyone(self) -> tuple[Sequence, ...]:
        return (*self.decoding, *self.prefilling, *self.waiting)

    @property
    def busy(self) -> bool:
        """There is something to run."""
        return bool(self.decoding or self.prefilling or self.waiting)


def admitted(roster: Roster) -> Roster:
    """First come, first served: waiting sequences take the first free slots, where most can stay later."""
    taken = {s.slot for s in roster.prefilling}
    free = [slot for slot in range(len(roster.decoding), roster.slots) if slot not in taken]
    if not free or not roster.waiting:
        return roster
    count = min(len(free), len(roster.waiting))
    entering = tuple(replace(s, slot=slot) for s, slot in zip(roster.waiting, free, strict=False))
    return replace(roster, waiting=roster.waiting[count:], prefilling=roster.prefilling + entering)


def promoted(roster: Roster, key: int) -> tuple[Roster, tuple[Move, ...]]:
    """A prefilling sequence starts to decode, in the first slot behind those that do already."""
    (entering,) = (s for s in roster.prefilling if s.key == key)
    target = len(roster.decoding)
    others = tuple(s for s in roster.prefilling if s.key != key)
    moves: tuple[Move, ...] = ()
    if entering.slot != target:
        moves = (Move(entering.slot, target, entering.cached),)
        holder = next((s for s in others if s.slot == target), None)
        if holder is not None:  # they change places by way of the spare slot
            spare = roster.slots
            moves = (Move(target, spare, holder.cached), *moves, Move(spare, entering.slot, holder.cached))
            others = tuple(replace(s, slot=entering.slot) if s is holder else s for s in others)
    decoding = (*roster.decoding, replace(entering, slot=target))
    return replace(roster, prefilling=others, decoding=decoding), tuple(m for m in moves if m.tokens)


def removed(roster: Roster, key: int) -> tuple[Roster, tuple[Move, ...]]:
    """A sequence leaves, wherever it is; the last decoding one takes the place of one that decoded."""
    place = next((i for i, s in enumerate(roster.decoding) if s.key == key), None)
    if place is None:
        waiting, prefilling = (tuple(s for s in group if s.key != key) for group in (roster.waiting, roster.prefilling))
        return replace(roster, waiting=waiting, prefilling=prefilling), ()
    *decoding, last = roster.decoding
    moves: tuple[Move, ...] = ()
    if last.key != key:
        moves = (Move(last.slot, place, last.cached),)
        decoding[place] = replace(last, slot=place)
    return replace(roster, decoding=tuple(decoding)), moves
