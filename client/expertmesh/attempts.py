"""One call over however many attempts it takes; it does no input or output itself."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from expertmesh.errors import DeadlineExceeded, ExpertmeshError, InvalidRequest, NotFound, Overloaded, Unsupported
from expertmesh.picking import Way
from expertmesh.resuming import Failure, ResumePolicy, resume_delay_s


class Attempts:
    """The deadline of a call, its way through the addresses, and what failed since something last arrived.

    Raises:
        InvalidRequest: `deadline_s` is not above 0.

    """

    def __init__(
        self,
        policy: ResumePolicy,
        deadline_s: float,
        way: Way,
        *,
        now: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        if not deadline_s > 0:
            raise InvalidRequest(f"deadline_s is {deadline_s:g}: it must be above 0")
        self._policy = policy
        self._way = way
        self._now, self._chance = now, chance
        self._deadline_s = deadline_s
        self._deadline = now() + deadline_s
        self._failures = 0
        self._refusal: ExpertmeshError | None = None
        self._reason: ExpertmeshError | None = None

    def next(self, so_far: str = "") -> tuple[int, float]:
        """(place of the address to ask, seconds that it may take); `so_far` says in an error what has arrived.

        Raises:
            DeadlineExceeded: there are none left.

        """
        remaining_s = self._deadline - self._now()
        if remaining_s <= 0:
            raise self._too_late(f"no complete answer within deadline_s={self._deadline_s:g}{so_far}")
        return self._way.next(), remaining_s

    def worked(self) -> None:
        """Something arrived."""
        self._failures = 0
        self._reason = None
        self._way.worked()

    def failed(self, error: ExpertmeshError, *, started: bool = False, repeatable: bool = True) -> float:
        """Seconds to wait before `next`.

        Raises:
            ExpertmeshError: `error` (or an earlier refusal), if no further attempt makes sense.

        """
        down = not isinstance(error, (NotFound, Overloaded, Unsupported))
        if isinstance(error, (NotFound, Unsupported)):
            self._refusal = error
        elsewhere = self._way.failed(down=down)
        self._failures += not elsewhere
        failure = Failure(
            failures=self._failures,
            started=started,
            remaining_s=self._deadline - self._now(),
            chance=self._chance(),
            elsewhere=elsewhere,
            repeatable=repeatable,
        )
        delay_s = resume_delay_s(self._policy, error, failure)
        if delay_s is None:
            # What a gateway said counts more than that another one could not be reached to say the same.
            raise self._refusal or (self._too_late(str(error)) if isinstance(error, DeadlineExceeded) else error)
        self._reason = error
        return delay_s

    def _too_late(self, says: str) -> DeadlineExceeded:
        """With what was said before: that the time is up explains nothing."""
        return DeadlineExceeded(says if self._reason is None else f"{says}; before that: {self._reason}")
