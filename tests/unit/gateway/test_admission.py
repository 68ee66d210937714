"""Who may join: bounded in number and in length, with messages that say what would be allowed."""

import pytest

from expertmesh_common.errors import Exhausted, InvalidInput
from expertmesh_controller.gateway.batching.admission import AdmissionLimits, admit, granted_tokens


def test_slots_and_queue_may_fill() -> None:
    admit(11, AdmissionLimits(slots=4, queue=8), mean_request_s=1.0)


def test_one_more_is_told_when_to_come_back() -> None:
    with pytest.raises(Exhausted, match="4 requests are running and 8 waiting: try again in 500 ms") as caught:
        admit(12, AdmissionLimits(slots=4, queue=8), mean_request_s=2.0)
    assert caught.value.retry_after_ms == 500


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
