"""Slots: decoding sequences without gaps, prompts behind them, moves that keep every cache where its owner is."""

import random

from hypothesis import given
from hypothesis import strategies as st

from expertmesh_controller.gateway.batching.planning import advanced, planned
from expertmesh_controller.gateway.batching.roster import Move, Roster, Sequence, admitted, promoted, removed


def waiting(*keys: int, tokens: int = 10) -> tuple[Sequence, ...]:
    return tuple(Sequence(key, tokens, arrived=0.0, deadline=1e9) for key in keys)


def running(slots: int, *keys: int) -> Roster:
    decoding = tuple(Sequence(key, 11, 0.0, 1e9, cached=10, slot=i) for i, key in enumerate(keys))
    return Roster(slots, decoding=decoding)


def test_newcomers_take_the_first_free_slots_in_order_of_arrival() -> None:
    roster = admitted(Roster(3, waiting=waiting(1, 2, 3, 4)))
    assert [(s.key, s.slot) for s in roster.prefilling] == [(1, 0), (2, 1), (3, 2)]
    assert [s.key for s in roster.waiting] == [4]


def test_a_whole_prompt_stays_where_it_is_if_nobody_left_meanwhile() -> None:
    roster = admitted(Roster(4, waiting(9), decoding=running(4, 1, 2).decoding))
    roster, moves = promoted(roster, 9)
    assert moves == ()
    assert [(s.key, s.slot) for s in roster.decoding] == [(1, 0), (2, 1), (9, 2)]


def test_a_whole_prompt_steps_down_behind_those_that_decode() -> None:
    prefilling = (Sequence(9, 7, 0.0, 1e9, cached=7, slot=3),)
    roster, moves = promoted(Roster(4, prefilling=prefilling, decoding=running(4, 1, 2).decoding), 9)
    assert moves == (Move(3, 2, 7),)
    assert [(s.key, s.slot) for s in roster.decoding] == [(1, 0), (2, 1), (9, 2)]


def test_a_place_whose_holder_has_nothing_cached_is_taken_with_one_move() -> None:
    prefilling = (Sequence(1, 9, 0.0, 1e9, slot=0), Sequence(2, 7, 0.0, 1e9, cached=7, slot=1))
    assert promoted(Roster(2, prefilling=prefilling), 2)[1] == (Move(1, 0, 7),)


def test_a_prompt_in_the_way_changes_places_through_the_spare_slot() -> None:
    prefilling = (Sequence(1, 9, 0.0, 1e9, cached=4, slot=0), Sequence(2, 7, 0.0, 1e9, cached=7, slot=1))
    roster, moves = promoted(Roster(2, prefilling=prefilling), 2)
    assert moves == (Move(0, 2, 4), Move(1, 0, 7), Move(2, 1, 4))
    assert [(s.key, s.slot) for s in (*roster.decoding, *roster.prefilling)] == [(2, 0), (1, 1)]


def test_the_last_one_fills_the_gap_of_one_that_leaves() -> None:
    roster, moves = removed(running(4, 1, 2, 3), 1)
    assert moves == (Move(2, 0, 10),)
    assert [(s.key, s.slot) for s in roster.decoding] == [(3, 0), (2, 1)]


def test_the_last_one_leaves_without_a_move() -> None:
    roster, moves = removed(running(4, 1, 2), 2)
    assert moves == ()
    assert [s.key for s in roster.decoding] == [1]


def test_a_waiting_or_prefilling_one_leaves_without_a_move() -> None:
    roster = admitted(Roster(1, waiting=waiting(1, 2)))
    for key in (1, 2):
        roster, moves = removed(roster, key)
        assert moves == ()
    assert not roster.busy


class Cells:
    """Stands for the cache: which sequence's tokens each slot holds."""

    def __init__(self, slots: int) -> None:
        self.cells: list[list[int]] = [[] for _ in range(slots + 1)]

    def write(self, slot: int, start: int, keys: list[int]) -> None:
        self.cells[slot][start:] = keys

    def apply(self, moves: tuple[Move, ...]) -> None:
        for move in moves:
            self.cells[move.target] = self.cells[move.source][: move.tokens]

    def check(self, roster: Roster) -> None:
        for sequence in (*roster.decoding, *roster.prefilling):
            assert self.cells[sequence.slot][: sequence.cached] == [sequence.key] * sequence.cached


@given(st.integers(0, 2**32), st.integers(1, 5))
def test_through_any_life_every_sequence_finds_its_own_cache(seed: int, slots: int) -> None:
    chance, roster, cells, key = random.Random(seed), Roster(slots), Cells(slots), 0
    for _ in range(60):
        if chance.random() < 0.4:
            key += 1
            newcomer = waiting(key, tokens=chance.randint(1, 9))
            roster = Roster(slots, roster.waiting + newcomer, roster.prefilling, roster.decoding)
        if roster.busy and chance.random() < 0.2:
            roster, moves = removed(roster, chance.choice(roster.everyone).key)
            cells.apply(moves)
        roster = admitted(roster)
        plan = planned(roster, now=0.0, chunk_tokens=4)
        if plan is None:
            continue
        for sequence in roster.decoding:
            cells.write(sequence.slot, sequence.cached, [sequence.key])
        if plan.chunk:
            cells.write(plan.chunk.slot, plan.chunk.start, [plan.chunk.key] * plan.chunk.count)
        roster = advanced(roster, plan)
        if plan.chunk and plan.chunk.ends_prompt:
            roster, moves = promoted(roster, plan.chunk.key)
            cells.apply(moves)
        assert [s.slot for s in roster.decoding] == list(range(len(roster.decoding)))
        cells.check(roster)
