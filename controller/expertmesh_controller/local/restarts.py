"""When a child process that ended by itself is started again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The wait doubles from `base_s` to `max_s`; a child that ran for `healthy_s` starts over from the beginning.

    A child that fails `give_up` times in a row without ever being healthy never will be.
    """

    base_s: float = 0.25
    max_s: float = 10.0
    healthy_s: float = 30.0
    give_up: int = 8


def restart_delay_s(policy: RestartPolicy, failures: int) -> float | None:
    """Seconds until the start after the `failures`-th short life in a row (from 1), or None to give up."""
    if failures >= policy.give_up:
        return None
    return min(policy.base_s * 2.0 ** (failures - 1), policy.max_s)


def count_failures(policy: RestartPolicy, failures: int, lived_s: float) -> int:
    """Short lives in a row, this one included."""
    return 1 if lived_s >= policy.healthy_s else failures + 1
