"""What the control loop is told about the load: arrivals and the time per output token."""

from __future__ import annotations

import threading
from bisect import bisect_left

from expertmesh_controller.cluster.routes import TOKEN_MS_BOUNDS

__all__ = ["Tally"]


class Tally:
    """Counts since the last `take`. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reset()

    def arrived(self) -> None:
        with self._lock:
            self._arrivals += 1

    def token_took(self, ms: float) -> None:
        """Count the time between a token and the one before it."""
        with self._lock:
            self._histogram[bisect_left(TOKEN_MS_BOUNDS, ms)] += 1

    def take(self) -> tuple[int, tuple[int, ...]]:
        """(arrivals, histogram over `TOKEN_MS_BOUNDS` and above) since the last call."""
        with self._lock:
            taken = self._arrivals, tuple(self._histogram)
            self._reset()
        return taken

    def _reset(self) -> None:
        self._arrivals = 0
        self._histogram = [0] * (len(TOKEN_MS_BOUNDS) + 1)
