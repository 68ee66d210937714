"""Who may join: bounded in number, by client, by deadline and in length, with what would be allowed."""

import pytest

from expertmesh_common.errors import InvalidInput
from expertmesh_controller.gateway.batching.admission import (
    AdmissionLimits,
    Crowd,
    Newcomer,
    RefusalReason,
    granted_tokens,
    refusal,
)
from expertmesh_controller.gateway.batching.pace import Pace, Pacing

LIMITS = AdmissionLimits(slots=4, queue=8, unread=10)
ANNA = Newcomer("anna", 10, left_s=60.0)


def crowd(**waiting: int) -> Crowd:
    """Every slot is taken."""
    return Crowd(4 + sum(waiting.values()), 4, waiting)


def test_whoever_finds_a_free_slot_joins_however_slow_the_gateway_was() -> None:
    hurried = Newcomer("anna", 10_000, left_s=0.001)
    assert refusal(hurried, Crowd(3, 3), LIMITS, Pace(service_s=100.0, prompt_token_s=1.0)) is None


def test_slots_and_queue_may_fill() -> None:
    assert refusal(ANNA, crowd(bert=4, cleo=3), LIMITS, Pace()) is None


def test_one_more_is_told_when_to_come_back() -> None:
    found = refusal(ANNA, crowd(bert=4, cleo=4), LIMITS, Pace(service_s=2.0))
    assert found is not None
    assert found.reason is RefusalReason.QUEUE
    assert str(found.error()) == "4 requests are running and 8 waiting: try again in 500 ms"
    assert found.error().retry_after_ms == 500


def test_one_client_gets_half_of_the_queue_and_the_next_one_finds_room() -> None:
    assert refusal(ANNA, crowd(anna=4), LIMITS, Pace()) is None
    found = refusal(ANNA, crowd(anna=5), LIMITS, Pace(service_s=2.0))
    assert found is not None
    assert found.reason is RefusalReason.SHARE
    assert str(found.error()) == "5 requests of anna are waiting, its share of 8 places: try again in 500 ms"
    assert refusal(Newcomer("bert", 10, 60.0), crowd(anna=5), LIMITS, Pace()) is None


def test_a_burst_that_the_engine_has_not_looked_at_yet_counts_as_running_as_far_as_slots_go() -> None:
    assert refusal(ANNA, Crowd(8, 0, {"anna": 8}), LIMITS, Pace()) is None
    found = refusal(ANNA, Crowd(9, 0, {"anna": 9}), LIMITS, Pace())
    assert found is not None
    assert found.reason is RefusalReason.SHARE


def test_a_first_token_that_cannot_come_in_time_is_refused_at_once_with_when_it_could() -> None:
    pace = Pace(service_s=2.0, prompt_token_s=0.01)
    hurried = Newcomer("anna", 100, left_s=2.4)
    found = refusal(hurried, crowd(anna=2, bert=1), LIMITS, pace)  # turns: 2 of anna's, 1 of bert's, then this one
    assert found is not None
    assert found.reason is RefusalReason.DEADLINE
    assert str(found.error()) == (
        "the first token is expected in 3.00 s, behind 3 requests, and the deadline is in 2.40 s: try again in 600 ms"
    )
    assert refusal(Newcomer("anna", 100, left_s=3.1), crowd(anna=2, bert=1), LIMITS, pace) is None


def test_others_long_queues_do_not_make_a_newcomer_late() -> None:
    assert refusal(Newcomer("anna", 1, left_s=0.6), crowd(bert=5), LIMITS, Pace(service_s=2.0)) is None


def test_nothing_is_refused_for_its_deadline_before_anything_was_measured() -> None:
    assert refusal(Newcomer("anna", 10_000, left_s=0.001), crowd(bert=1), LIMITS, Pace()) is None


def test_answers_that_nobody_reads_are_bounded_by_client() -> None:
    assert refusal(ANNA, Crowd(unread={"anna": 5}), LIMITS, Pace()) is None
    found = refusal(ANNA, Crowd(unread={"anna": 6}), LIMITS, Pace())
    assert found is not None
    assert found.reason is RefusalReason.UNREAD
    assert "6 answers are complete and not read, 6 of them those of anna" in found.message
    assert refusal(Newcomer("bert", 1, 60.0), Crowd(unread={"anna": 6}), LIMITS, Pace()) is None


def test_the_measured_pace_follows_what_happens() -> None:
    pacing = Pacing()
    assert pacing.now == Pace(None, None)
    pacing.request_took(10.0)
    pacing.chunk_took(0.5, tokens=50)
    assert pacing.now == Pace(10.0, 0.01)
    pacing.request_took(5.0)
    assert pacing.now.service_s == pytest.approx(9.0)


def test_zero_max_tokens_takes_all_that_fits() -> None:
    assert granted_tokens(100, 0, 512, "prompt") == 412


def test_exactly_what_fits_is_granted() -> None:
    assert granted_tokens(100, 412, 512, "prompt") == 412


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "message"),
    [
        (0, 5, "prompt has no tokens"),
        (512, 5, "prompt has 512 tokens: this gateway's context allows prompts of up to 511"),
        (100, 413, "max_tokens is 413: .* leaves room for 1 to 412"),
    ],
)
def test_what_does_not_fit_is_named(prompt_tokens: int, max_tokens: int, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        granted_tokens(prompt_tokens, max_tokens, 512, "prompt")
