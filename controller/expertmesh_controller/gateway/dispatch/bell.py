"""Tells one thread that something it decided by has changed."""

from __future__ import annotations

import threading


class Bell:
    """Counts changes. A waiter remembers the count it decided by and waits for a later one."""

    def __init__(self) -> None:
        self.count = 0
        self._rung = threading.Condition()

    def ring(self) -> None:
        with self._rung:
            self.count += 1
            self._rung.notify_all()

    def wait_beyond(self, count: int, timeout_s: float) -> bool:
        """Wait until the count passes `count`, for at most `timeout_s` seconds; whether it did."""
        with self._rung:
            return self._rung.wait_for(lambda: self.count > count, max(timeout_s, 0.0))
