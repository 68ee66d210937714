"""Clients take turns: whoever was served least enters next, and nobody gains by asking more often or coming back."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from expertmesh_controller.gateway.batching.fairness import requests_ahead, within_share
from expertmesh_controller.gateway.batching.roster import Roster, Sequence, admitted, joined, removed


def asked(roster: Roster, client: str, *keys: int, tokens: int = 10) -> Roster:
    for key in keys:
        roster = joined(roster, Sequence(key, tokens, 0.0, 1e9, client=client))
    return roster


def entering(roster: Roster, turns: int) -> list[int]:
    """Keys in the order of entering, when each leaves before the next one enters."""
    order = []
    for _ in range(turns):
        roster = admitted(roster)
        (running,) = roster.prefilling
        order.append(running.key)
        roster, _ = removed(roster, running.key)
    return order


def test_one_clients_hundred_requests_do_not_go_before_anothers_three() -> None:
    roster = asked(Roster(1), "greedy", *range(100))
    roster = asked(roster, "modest", 100, 101, 102)
    order = entering(roster, 8)
    assert order == [0, 100, 1, 101, 2, 102, 3, 4]


def test_what_counts_is_tokens_not_requests() -> None:
    roster = asked(Roster(1), "long", 0, 1, 2, tokens=100)
    roster = asked(roster, "short", *range(3, 30), tokens=10)
    order = entering(roster, 14)
    assert order == [0, *range(3, 13), 1, 13, 14]


def test_tokens_of_running_answers_count_too() -> None:
    roster = admitted(asked(asked(Roster(2), "a", 0), "b", 1))
    running = tuple(s._replace(tokens=500) if s.client == "a" else s for s in roster.prefilling)
    roster = replace(roster, prefilling=running)
    roster = asked(asked(roster, "a", 2), "b", 3)
    roster, _ = removed(roster, 1)
    assert [s.key for s in admitted(roster).prefilling] == [0, 3]


def test_who_comes_late_or_comes_back_starts_level_with_the_least_served() -> None:
    roster = admitted(asked(Roster(2), "early", 0, 1, 2, tokens=1000))
    roster = asked(roster, "late", 10, 11, 12)
    assert roster.settled["late"] == 2000  # no credit for the time before
    for key in (0, 1):
        roster, _ = removed(roster, key)
    assert [s.key for s in admitted(roster).prefilling] == [2, 10]


def test_who_has_gone_is_forgotten() -> None:
    roster = admitted(asked(Roster(1), "a", 0))
    roster, _ = removed(roster, 0)
    assert roster == Roster(1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), min_size=1, max_size=40), st.integers(1, 4))
def test_everyone_enters_once_and_a_clients_own_requests_in_order(requests: list[tuple[str, int]], slots: int) -> None:
    roster = Roster(slots)
    for key, (client, tokens) in enumerate(requests):
        roster = asked(roster, client, key, tokens=tokens)
    order: list[int] = []
    while roster.busy:
        before = {s.key for s in roster.prefilling}
        roster = admitted(roster)
        order += [s.key for s in roster.prefilling if s.key not in before]
        roster, _ = removed(roster, roster.prefilling[0].key)
    assert sorted(order) == list(range(len(requests)))
    for client in "abc":
        own = [key for key in order if requests[key][0] == client]
        assert own == sorted(own)
    assert dict(roster.settled) == {}


def test_with_equal_turns_only_so_many_of_others_go_ahead() -> None:
    assert requests_ahead("new", {"greedy": 100}) == 0
    assert requests_ahead("b", {"a": 100, "b": 3, "c": 1}) == 3 + 3 + 1


def test_a_newcomer_finds_room_until_many_clients_are_here() -> None:
    free, clients = 64, 0
    while within_share(0, free):
        own = 0
        while within_share(own, free):
            own, free = own + 1, free - 1
        clients += 1
    assert clients >= 6
    assert free == 0
