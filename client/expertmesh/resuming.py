"""When a broken stream is tried again: a pure decision over what happened so far."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from expertmesh.errors import ExpertmeshError, Overloaded

_BROKEN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


@dataclass(frozen=True, slots=True)
class ResumePolicy:
    """How hard a stream is kept alive. Attempts count failures since the last token that arrived.

    attempts         after the first token; enough for a controller to restart
    first_attempts   before the first token, where the caller has lost nothing yet and wants to know soon
    base_s, max_s    the wait doubles from base to max, less up to half of it by chance
    """

    attempts: int = 12
    first_attempts: int = 3
    base_s: float = 0.1
    max_s: float = 2.0


def resume_delay_s(
    policy: ResumePolicy, error: ExpertmeshError, *, failures: int, started: bool, remaining_s: float, chance: float
) -> float | None:
    """Seconds to wait before the next attempt, or None to give up and raise.

    `failures` counts this one; `started` tells whether a token has arrived; `chance` lies in [0, 1).
    A refusal for load is waited out only for a stream that has begun: a new one is the caller's to time.
    """
    allowed = policy.attempts if started else policy.first_attempts
    if failures >= allowed or not _may_retry(error, started):
        return None
    delay = min(policy.base_s * 2 ** (failures - 1), policy.max_s) * (1 - chance / 2)
    if isinstance(error, Overloaded):
        delay = max(delay, error.retry_after_ms / 1000)
    return delay if delay < remaining_s else None


def _may_retry(error: ExpertmeshError, started: bool) -> bool:
    return error.status in _BROKEN or (started and isinstance(error, Overloaded))
