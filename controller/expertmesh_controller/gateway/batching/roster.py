"""Who waits, who is being read in, who is answered, and in which slot: plain frozen data.

Slots 0 .. B - 1 belong to the B sequences that decode, without a gap, because a decode batch is a prefix of the cache.
Prompts are read in behind them and join them when they are whole. Slot `slots` is spare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from expertmesh_controller.gateway.batching.fairness import level, next_in_turn, served_tokens

__all__ = ["Crowding", "Move", "Roster", "Sequence", "admitted", "joined", "promoted", "removed"]


class Sequence(NamedTuple):
    """`tokens` are known (prompt, then answer), `cached` of them are in the cache. Times are monotonic seconds.

    A `scored` sequence is read in only: each of its rows tells how likely the next token is, and none is generated.
    """

    key: int
    tokens: int
    arrived: float
    deadline: float
    cached: int = 0
    slot: int = -1
    client: str = ""
    scored: bool = False

    @property
    def remaining_tokens(self) -> int:
        return self.tokens - self.cached

    def fed(self) -> Sequence:
        """After a step in which it decoded; written out, because that is quicker than `_replace`."""
        key, tokens, arrived, deadline, cached, slot, client, scored = self
        return Sequence(key, tokens + 1, arrived, deadline, cached + 1, slot, client, scored)

    @property
    def charged_tokens(self) -> int:
        """What its client was served with it: a prompt counts from the moment that it has a slot."""
        return self.tokens if self.slot >= 0 else 0


@dataclass(frozen=True, slots=True)
class Move:
    """Copy the first `tokens` positions of a slot's cache. Moves are done in order."""

    source: int
    target: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Roster:
    """`decoding[i]` has slot i. `settled` are tokens served to the clients here by sequences that have left."""

    slots: int
    waiting: tuple[Sequence, ...] = ()
    prefilling: tuple[Sequence, ...] = ()
    decoding: tuple[Sequence, ...] = ()
    settled: Mapping[str, int] = field(default_factory=dict)

    @property
    def everyone(self) -> tuple[Sequence, ...]:
        return (*self.decoding, *self.prefilling, *self.waiting)

    @property
    def busy(self) -> bool:
        """There is something to run."""
        return bool(self.decoding or self.prefilling or self.waiting)


def joined(roster: Roster, sequence: Sequence) -> Roster:
    """One more waits. A client that had nothing here starts level with the least served."""
    settled = roster.settled
    if all(s.client != sequence.client for s in roster.everyone):
        settled = {**settled, sequence.client: level(served_tokens(roster.everyone, settled))}
    return replace(roster, waiting=(*roster.waiting, sequence), settled=settled)


@dataclass(frozen=True, slots=True)
class Crowding:
    """A roster in numbers: `running` of `slots` are taken, `waiting` have none."""

    slots: int
    running: int
    waiting: int

    @staticmethod
    def of(roster: Roster) -> Crowding:
        return Crowding(roster.slots, len(roster.prefilling) + len(roster.decoding), len(roster.waiting))


def admitted(roster: Roster) -> Roster:
    """Clients take turns: whoever was served least takes the first free slot, where most can stay later.

    A client's own sequences come in the order of their arrival.
    """
    if not roster.waiting:
        return roster
    taken = {s.slot for s in roster.prefilling}
    free = [slot for slot in range(len(roster.decoding), roster.slots) if slot not in taken]
    if not free:
        return roster
    served = served_tokens(roster.everyone, roster.settled)
    waiting, entering = list(roster.waiting), list[Sequence]()
    for slot in free[: len(waiting)]:
        chosen = next_in_turn(waiting, served)
        waiting.remove(chosen)
        served[chosen.client] += chosen.tokens
        entering.append(chosen._replace(slot=slot))
    return replace(roster, waiting=tuple(waiting), prefilling=(*roster.prefilling, *entering))


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
            others = tuple(s._replace(slot=entering.slot) if s is holder else s for s in others)
    decoding = (*roster.decoding, entering._replace(slot=target))
    return replace(roster, prefilling=others, decoding=decoding), tuple(m for m in moves if m.tokens)


def removed(roster: Roster, key: int) -> tuple[Roster, tuple[Move, ...]]:
    """A sequence leaves, wherever it is; the last decoding one takes the place of one that decoded."""
    roster = replace(roster, settled=_settled(roster, key))
    place = next((i for i, s in enumerate(roster.decoding) if s.key == key), None)
    if place is None:
        waiting, prefilling = (tuple(s for s in group if s.key != key) for group in (roster.waiting, roster.prefilling))
        return replace(roster, waiting=waiting, prefilling=prefilling), ()
    *decoding, last = roster.decoding
    moves: tuple[Move, ...] = ()
    if last.key != key:
        moves = (Move(last.slot, place, last.cached),)
        decoding[place] = last._replace(slot=place)
    return replace(roster, decoding=tuple(decoding)), moves


def _settled(roster: Roster, key: int) -> Mapping[str, int]:
    """The account after sequence `key` has left: its client keeps the charge while it has others here."""
    leaving = next((s for s in roster.everyone if s.key == key), None)
    if leaving is None:
        return roster.settled
    rest = {client: tokens for client, tokens in roster.settled.items() if client != leaving.client}
    if any(s.client == leaving.client and s.key != key for s in roster.everyone):
        rest[leaving.client] = roster.settled.get(leaving.client, 0) + leaving.charged_tokens
    return rest
