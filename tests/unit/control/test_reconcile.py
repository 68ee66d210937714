"""`next_steps`: what can be done now, from what should be and what is."""

from __future__ import annotations

from expertmesh_controller.control.catalogue import ExpertKey
from expertmesh_controller.control.reconcile.steps import next_steps
from expertmesh_controller.control.reconcile.types import Holding, LoadExpert, Observed, Route, UnloadExpert

A, B, C = (ExpertKey("m", 0, n, "fp32") for n in range(3))
BYTES = {A: 10, B: 10, C: 10}
NONE: frozenset = frozenset()


def holding(*keys: ExpertKey, free: int = 100, leaving: bool = False) -> Holding:
    return Holding(frozenset(keys), free, leaving=leaving)


def world(holdings: dict[str, Holding], routed=(), **more) -> Observed:
    return Observed(5.0, holdings, frozenset(routed), BYTES, **more)


def want(**assignments: set[ExpertKey]) -> dict[str, frozenset[ExpertKey]]:
    return {w: frozenset(keys) for w, keys in assignments.items()}


def test_nothing_is_done_where_everything_is_as_it_should_be() -> None:
    assert next_steps(want(w={A}), world({"w": holding(A)}, [("w", A)]), NONE) == []


def test_an_expert_is_loaded_first_and_routed_when_loaded() -> None:
    assert next_steps(want(w={A}), world({"w": holding()}), NONE) == [LoadExpert("w", A)]
    assert next_steps(want(w={A}), world({"w": holding()}), frozenset({("load", "w", A)})) == []
    assert next_steps(want(w={A}), world({"w": holding(A)}), NONE) == [Route(frozenset({("w", A)}), NONE)]


def test_a_move_flips_in_one_step_and_unloads_only_after_the_drain() -> None:
    desired = want(new={A}, old=set())
    holdings = {"new": holding(A), "old": holding(A)}
    flip = Route(frozenset({("new", A)}), frozenset({("old", A)}))
    assert next_steps(desired, world(holdings, [("old", A)]), NONE) == [flip]
    routed = [("new", A)]
    assert next_steps(desired, world(holdings, routed, draining={("old", A): None}), NONE) == []
    assert next_steps(desired, world(holdings, routed, draining={("old", A): 5.1}), NONE) == []
    assert next_steps(desired, world(holdings, routed, draining={("old", A): 5.0}), NONE) == [UnloadExpert("old", A)]
    ordered = frozenset({("unload", "old", A)})
    assert next_steps(desired, world(holdings, routed), ordered) == []


def test_the_only_copy_stays_routed_until_another_one_is() -> None:
    steps = next_steps(want(new={A}, old=set()), world({"new": holding(), "old": holding(A)}, [("old", A)]), NONE)
    assert steps == [LoadExpert("new", A)]


def test_of_two_copies_that_should_both_go_one_stays_until_there_is_a_third() -> None:
    holdings = {"x": holding(A), "y": holding(A), "new": holding()}
    steps = next_steps(want(new={A}, x=set(), y=set()), world(holdings, [("x", A), ("y", A)]), NONE)
    assert steps == [Route(NONE, frozenset({("x", A)})), LoadExpert("new", A)]


def test_routes_to_a_lost_worker_go_at_once() -> None:
    steps = next_steps(want(w={A}), world({"w": holding(A)}, [("w", A), ("gone", A), ("gone", B)]), NONE)
    assert steps == [Route(NONE, frozenset({("gone", A), ("gone", B)}))]


def test_experts_that_nobody_serves_are_loaded_before_second_copies() -> None:
    holdings = {"w": holding(free=10), "x": holding(A)}
    steps = next_steps(want(w={A, B}, x={A}), world(holdings, [("x", A)]), NONE)
    assert steps == [LoadExpert("w", B)]


def test_a_load_waits_for_room_and_for_its_turn() -> None:
    assert next_steps(want(w={A}), world({"w": holding(free=9)}), NONE) == []
    in_flight = frozenset({("load", "w", B)})
    assert next_steps(want(w={A, B}), world({"w": holding(free=19)}), in_flight) == []
    steps = next_steps(want(w={A, B, C}), world({"w": holding()}, loads_per_worker=2), NONE)
    assert steps == [LoadExpert("w", A), LoadExpert("w", B)]


def test_a_failed_order_is_not_repeated_before_its_time() -> None:
    assert next_steps(want(w={A}), world({"w": holding()}, not_before={("w", A): 5.1}), NONE) == []
    assert next_steps(want(w={A}), world({"w": holding()}, not_before={("w", A): 5.0}), NONE) == [LoadExpert("w", A)]


def test_bytes_that_no_model_has_any_more_are_unloaded_before_the_expert_is_loaded_anew() -> None:
    holdings = {"w": Holding(NONE, 100, foreign=frozenset({A}))}
    assert next_steps(want(w={A}), world(holdings), NONE) == [UnloadExpert("w", A)]


def test_a_leaving_worker_gets_no_orders_and_gives_its_routes_to_others() -> None:
    holdings = {"old": holding(A, leaving=True), "new": holding(A)}
    steps = next_steps(want(new={A}), world(holdings, [("old", A)]), NONE)
    assert steps == [Route(frozenset({("new", A)}), frozenset({("old", A)}))]


def test_what_is_being_unloaded_does_not_enter_the_table() -> None:
    assert next_steps(want(w={A}), world({"w": holding(A)}), frozenset({("unload", "w", A)})) == []


def doubted(*keys: ExpertKey, aside: bool = False) -> Holding:
    return Holding(frozenset(keys), 100, doubted=True, aside=aside)


def test_a_copy_that_gateways_may_not_reach_stands_in_for_nobody() -> None:
    holdings, routed = {"new": doubted(A), "old": holding(A)}, [("new", A), ("old", A)]
    assert next_steps(want(new={A}, old=set()), world(holdings, routed), NONE) == []
    proven = {**holdings, "new": holding(A)}
    assert next_steps(want(new={A}, old=set()), world(proven, routed), NONE) == [Route(NONE, frozenset({("old", A)}))]


def test_a_doubted_copy_that_should_go_goes_when_another_one_is_sure() -> None:
    routed = [("odd", A), ("w", A)]
    flip = [Route(NONE, frozenset({("odd", A)}))]
    assert next_steps(want(w={A}), world({"odd": doubted(A, aside=True), "w": holding(A)}, routed), NONE) == flip
    assert next_steps(want(w={A}), world({"odd": doubted(A, aside=True), "w": doubted(A)}, routed), NONE) == []


def test_a_worker_set_aside_keeps_what_it_holds_and_what_it_alone_holds_is_loaded_elsewhere_first() -> None:
    holdings = {"odd": doubted(A, B, aside=True), "w": holding(B, free=20)}
    routed = [("odd", A), ("odd", B), ("w", B)]
    steps = next_steps(want(w={B, A, C}), world(holdings, routed), NONE)
    assert steps == [Route(NONE, frozenset({("odd", B)})), LoadExpert("w", A), LoadExpert("w", C)]
