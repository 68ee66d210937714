"""What a call that ran out of time says."""

from __future__ import annotations

import pytest

from expertmesh.attempts import Attempts
from expertmesh.errors import DeadlineExceeded, Unavailable
from expertmesh.picking import Picker, Way
from expertmesh.resuming import ResumePolicy

LACK = "the workers have no room for 131.4 MB"


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def attempts(clock) -> Attempts:
    return Attempts(ResumePolicy(), 5.0, Way(Picker(1, first=0)), now=clock)


def test_a_deadline_that_passes_in_a_second_attempt_names_what_failed_the_first(attempts):
    attempts.next()
    attempts.failed(Unavailable(LACK))
    with pytest.raises(DeadlineExceeded, match=f"too late; before that: {LACK}"):
        attempts.failed(DeadlineExceeded("too late"))


def test_a_deadline_that_passes_between_two_attempts_names_what_failed_the_last(attempts, clock):
    attempts.next()
    attempts.failed(Unavailable(LACK))
    clock.now_s = 6.0
    with pytest.raises(DeadlineExceeded, match=f"within deadline_s=5; before that: {LACK}"):
        attempts.next()


def test_what_failed_before_something_arrived_is_no_reason_any_more(attempts):
    attempts.next()
    attempts.failed(Unavailable(LACK))
    attempts.worked()
    with pytest.raises(DeadlineExceeded) as raised:
        attempts.failed(DeadlineExceeded("too late"), started=True)
    assert str(raised.value) == "too late"
