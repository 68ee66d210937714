"""Which prompt gets the step's chunk, and what a step may contain."""

from expertmesh_controller.gateway.batching.planning import StepPlan, advanced, planned
from expertmesh_controller.gateway.batching.roster import Roster, Sequence

LONG = Sequence(1, 1500, arrived=0.0, deadline=100.0, slot=3)
SHORT = Sequence(2, 20, arrived=2.0, deadline=50.0, slot=2)
DECODING = Sequence(3, 31, arrived=0.0, deadline=70.0, cached=30, slot=0)


def plan(roster: Roster, now: float = 2.0) -> StepPlan:
    found = planned(roster, now, chunk_tokens=256)
    assert found is not None
    return found


def test_nobody_in_a_slot_means_no_step() -> None:
    assert planned(Roster(4), 0.0, 256) is None


def test_a_step_is_everyone_who_decodes_and_one_chunk() -> None:
    step = plan(Roster(4, prefilling=(LONG,), decoding=(DECODING,)))
    assert step.decode_keys == (3,)
    assert step.chunk is not None
    assert (step.chunk.start, step.chunk.count, step.chunk.ends_prompt) == (0, 256, False)
    assert step.sampled_keys == (3,)


def test_a_late_short_prompt_goes_before_the_rest_of_a_long_one() -> None:
    step = plan(Roster(4, prefilling=(LONG._replace(cached=512), SHORT)))
    assert step.chunk is not None
    assert step.chunk.key == SHORT.key
    assert step.sampled_keys == (SHORT.key,)


def test_a_long_prompt_that_has_waited_long_enough_goes_first() -> None:
    newcomer = SHORT._replace(arrived=8.0)
    step = plan(Roster(4, prefilling=(LONG, newcomer)), now=8.0)
    assert step.chunk is not None
    assert step.chunk.key == LONG.key


def test_a_step_ends_at_the_first_deadline_of_those_in_it() -> None:
    assert plan(Roster(4, prefilling=(LONG,), decoding=(DECODING,))).deadline == 70.0


def test_after_a_step_only_those_that_got_a_token_have_more_tokens() -> None:
    roster = Roster(4, prefilling=(LONG, SHORT._replace(arrived=-9.0)), decoding=(DECODING,))
    after = advanced(roster, plan(roster))
    assert [(s.cached, s.tokens) for s in after.everyone] == [(31, 32), (0, 1500), (20, 21)]
