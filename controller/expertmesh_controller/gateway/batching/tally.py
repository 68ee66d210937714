"""What was measured of the load: arrivals, the time to the first token, and the time per output token."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from expertmesh_controller.cluster.reports import TOKEN_MS_BOUNDS

__all__ = ["TOKEN_BOUNDS_S", "TTFT_BOUNDS_S", "Tally", "TallyTotals", "Times"]

TOKEN_BOUNDS_S = tuple(ms / 1000 for ms in TOKEN_MS_BOUNDS)
TTFT_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class Times:
    """Counts up to each bound and above the last (not cumulated), and the sum of all times."""

    counts: tuple[int, ...]
    total_s: float


@dataclass(frozen=True, slots=True)
class TallyTotals:
    """Totals since the start; bounds are `TTFT_BOUNDS_S` and `TOKEN_BOUNDS_S`."""

    arrivals: int
    first_token: Times
    token: Times


class Tally:
    """Counts since the start, and what came since the last `take`. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrivals = 0
        self._first_token = _Histogram(TTFT_BOUNDS_S)
        self._token = _Histogram(TOKEN_BOUNDS_S)
        self._taken = self.totals()

    def arrived(self) -> None:
        with self._lock:
            self._arrivals += 1

    def first_token_took(self, ms: float) -> None:
        """Count the time from admission to the first token."""
        with self._lock:
            self._first_token.add(ms / 1000)

    def token_took(self, ms: float) -> None:
        """Count the time between a token and the one before it."""
        with self._lock:
            self._token.add(ms / 1000)

    def totals(self) -> TallyTotals:
        """Everything so far."""
        with self._lock:
            return TallyTotals(self._arrivals, self._first_token.so_far, self._token.so_far)

    def take(self) -> tuple[int, tuple[int, ...]]:
        """(arrivals, histogram over `TOKEN_MS_BOUNDS` and above) since the last call."""
        before, self._taken = self._taken, self.totals()
        now = self._taken
        grown = tuple(b - a for a, b in zip(before.token.counts, now.token.counts, strict=True))
        return now.arrivals - before.arrivals, grown


class _Histogram:
    """One histogram that only grows; its owner's lock guards it."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._total_s = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds_s, seconds)] += 1
        self._total_s += seconds

    @property
    def so_far(self) -> Times:
        return Times(tuple(self._counts), self._total_s)
