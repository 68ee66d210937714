"""Whether the processes of `up` poll the expert channel before they sleep: it pays where each has a core, only there.

docs/expert-channel.md, "Waiting", has the figures.
"""

from __future__ import annotations

from typing import Final

__all__ = ["AUTO_SPIN_US", "spin_us"]

AUTO_SPIN_US: Final = 1000
"""A little more than the time between two layers of a small model."""


def spin_us(asked: int | None, *, cores: int, workers: int, gateways: int, threads: int) -> int:
    """Microseconds for every process: what was asked for, by default `AUTO_SPIN_US` if there are cores enough.

    A gateway computes with `threads` threads, a worker with one.
    """
    if asked is not None:
        return asked
    return AUTO_SPIN_US if workers and cores >= workers + gateways * threads else 0
