"""Time limits for blocking calls that know none: one thread looks at all of them a few times a second."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

TICK_S = 0.05


class Limit:
    """While `expires_at` (monotonic seconds) is set and passes, `cancel` is called once and `passed` becomes true."""

    __slots__ = ("cancel", "expires_at", "passed")

    def __init__(self, cancel: Callable[[], object]) -> None:
        self.cancel = cancel
        self.expires_at: float | None = None
        self.passed = False


class Watchdog:
    """Arming a limit is an assignment, as it happens on every hop; the price is a tick's delay when one passes."""

    def __init__(self) -> None:
        self._limits: set[Limit] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="link-watchdog", daemon=True)
        self._thread.start()

    def guard(self, cancel: Callable[[], object]) -> Limit:
        """A limit that is watched until released."""
        limit = Limit(cancel)
        with self._changed:
            self._limits.add(limit)
            self._changed.notify()
        return limit

    def release(self, limit: Limit) -> None:
        with self._changed:
            self._limits.discard(limit)

    def close(self) -> None:
        """Stop watching."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                self._changed.wait(TICK_S if self._limits else None)
                now = time.monotonic()
                for limit in self._limits:
                    expires_at = limit.expires_at  # once: the engine's thread disarms it at any moment
                    if expires_at is not None and expires_at <= now and not limit.passed:
                        limit.passed = True
                        _cancel(limit)


def _cancel(limit: Limit) -> None:
    """One call that cannot be cancelled must not leave all others unwatched."""
    try:
        limit.cancel()
    except Exception:
        log.exception("a call that took too long could not be cancelled")
