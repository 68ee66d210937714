"""When a call that failed is tried again: a pure decision over what happened so far."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from expertmesh.errors import ExpertmeshError, NotFound, Overloaded, Unsupported

_BROKEN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


@dataclass(frozen=True, slots=True)
class ResumePolicy:
    """How hard a call is kept alive, always within its deadline.

    An attempt asks every address of the client once. Attempts count failures since the last token that arrived.

    attempts         after the first token; enough for a controller to restart
    first_attempts   before the first token, and of calls without a stream: the caller has lost nothing yet and wants to
                     know soon
    base_s, max_s    the wait doubles from base to max, less up to half of it by chance; a mesh that is full is given
                     the time it asks for
    """

    attempts: int = 12
    first_attempts: int = 3
    base_s: float = 0.1
    max_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Failure:
    """What is known when an attempt has failed.

    failures      attempts that failed, this one included, since something last arrived
    started       a token has arrived
    elsewhere     there is an address that was not asked since
    repeatable    asking twice does no harm
    remaining_s   until the deadline
    chance        in [0, 1), shortens the wait
    """

    failures: int
    started: bool
    remaining_s: float
    chance: float = 0.0
    elsewhere: bool = False
    repeatable: bool = True


def resume_delay_s(policy: ResumePolicy, error: ExpertmeshError, failure: Failure) -> float | None:
    """Seconds to wait before the next attempt, or None to give up and raise."""
    if not _may_retry(error, failure):
        return None
    if failure.elsewhere:
        return 0.0
    allowed = policy.attempts if failure.started else policy.first_attempts
    if failure.failures >= allowed:
        return None
    delay = min(policy.base_s * 2 ** (failure.failures - 1), policy.max_s) * (1 - failure.chance / 2)
    if isinstance(error, Overloaded):
        delay = max(delay, error.retry_after_ms / 1000)
    return delay if delay < failure.remaining_s else None


def _may_retry(error: ExpertmeshError, failure: Failure) -> bool:
    """A refusal was not carried out, so anything may be asked again; what broke on the way may have been."""
    if isinstance(error, Overloaded):
        return True
    if isinstance(error, (Unsupported, NotFound)):
        return failure.elsewhere  # a gateway of its own has no control loop to ask, and hears of new models a bit later
    return error.status in _BROKEN and failure.repeatable
