"""A model's share of the budgets and its number of copies bound what placement gives it."""

from __future__ import annotations

import pytest

from expertmesh_controller.control.catalogue import ExpertKey, ModelLimits
from expertmesh_controller.control.placement.planning import plan
from expertmesh_controller.control.placement.types import ExpertNeed, Plan, WorkerRoom

SIZE = 10


def needs(*models: str, experts: int = 4) -> list[ExpertNeed]:
    return [
        ExpertNeed(ExpertKey(model, 0, index, "fp32"), SIZE, round(0.5 - 0.1 * index, 2))
        for model in models
        for index in range(experts)
    ]


def rooms(count: int, slots: int, held: Plan | None = None) -> list[WorkerRoom]:
    """Workers with room for `slots` experts each."""
    found = {} if held is None else held.assignments
    return [WorkerRoom(f"w{n}", slots * SIZE, 1.0, found.get(f"w{n}", frozenset())) for n in range(count)]


def copies(found: Plan, model: str) -> int:
    return sum(key.model == model for keys in found.assignments.values() for key in keys)


def uncovered(found: Plan, model: str) -> int:
    return sum(key.model == model for key in found.missing)


def test_replicas_of_a_model_stay_inside_its_share_and_others_take_the_rest():
    found = plan(needs("a", "b"), rooms(3, 8), limits={"a": ModelLimits(budget_share=0.25)})
    assert not found.missing
    assert copies(found, "a") == 6  # a quarter of 24
    assert copies(found, "b") == 12  # everything on every worker


def test_first_copies_beyond_the_share_are_missing_and_counted_while_room_is_free():
    found = plan(needs("a", "b"), rooms(2, 6), limits={"b": ModelLimits(budget_share=0.2)})
    assert uncovered(found, "a") == 0
    assert uncovered(found, "b") == 2
    assert found.missing_bytes == 2 * SIZE
    assert copies(found, "a") == 8  # what has no share to go into keeps nobody else from a second copy


def test_replicas_give_way_to_first_copies_of_their_own_model_when_its_share_is_full():
    before = plan(needs("a", experts=2), rooms(2, 6), limits={"a": ModelLimits(budget_share=0.34)})
    assert copies(before, "a") == 4
    after = plan(needs("a", experts=4), rooms(2, 6, before), limits={"a": ModelLimits(budget_share=0.34)})
    assert not after.missing
    assert copies(after, "a") == 4


def test_a_share_that_shrank_takes_replicas_and_never_a_last_copy():
    before = plan(needs("a"), rooms(2, 4))
    assert copies(before, "a") == 8
    after = plan(needs("a"), rooms(2, 4, before), limits={"a": ModelLimits(budget_share=0.25)})
    assert not after.missing
    assert copies(after, "a") == 4


def test_a_new_model_takes_room_from_the_replicas_of_the_others():
    before = plan(needs("a"), rooms(2, 4))
    after = plan(needs("a", "b"), rooms(2, 4, before))
    assert not after.missing
    assert (copies(after, "a"), copies(after, "b")) == (4, 4)


@pytest.mark.parametrize("most", [1, 2])
def test_no_expert_has_more_copies_than_its_model_may(most):
    before = plan(needs("a", "b"), rooms(3, 8))
    after = plan(needs("a", "b"), rooms(3, 8, before), limits={"a": ModelLimits(max_copies=most)})
    assert not after.missing
    assert copies(after, "a") == 4 * most
    assert copies(after, "b") == 12


def test_without_limits_nothing_is_different():
    free = plan(needs("a", "b"), rooms(3, 5))
    assert plan(needs("a", "b"), rooms(3, 5), limits={"a": ModelLimits()}) == free
