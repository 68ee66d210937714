"""When a child process that ended by itself, or was ended, is started again."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Final

__all__ = ["Failures", "RestartPolicy", "count_failures", "restart_delay_s"]

_FROM_OUTSIDE: Final = frozenset({-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP})
"""Exit codes of who was ended by somebody, the kernel that was out of memory included."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The wait doubles from `base_s` to `max_s`; a child that ran for `healthy_s` starts over from the beginning.

    A child that ends by itself `give_up` times in a row without ever being healthy never will be. Who is killed might
    have been, and is started again for ever.
    """

    base_s: float = 0.25
    max_s: float = 10.0
    healthy_s: float = 30.0
    give_up: int = 8


@dataclass(frozen=True, slots=True)
class Failures:
    """Short lives in a row, and how many of them ended by themselves."""

    in_a_row: int = 0
    by_itself: int = 0


def restart_delay_s(policy: RestartPolicy, failures: Failures) -> float | None:
    """Seconds until the start after these failures (from the first on), or None to give up."""
    if failures.by_itself >= policy.give_up:
        return None
    return min(policy.base_s * 2.0 ** min(failures.in_a_row - 1, 32), policy.max_s)


def count_failures(policy: RestartPolicy, before: Failures, lived_s: float, exit_code: int) -> Failures:
    """The count with the life that just ended; codes of signals are negative."""
    if lived_s >= policy.healthy_s:
        before = Failures()
    return Failures(before.in_a_row + 1, before.by_itself + (exit_code not in _FROM_OUTSIDE))
