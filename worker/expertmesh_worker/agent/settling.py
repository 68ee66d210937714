"""Doing something once, when a burst of changes is over."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

__all__ = ["Settling"]

QUIET_S = 1.0


class Settling:
    """Calls `act` when nothing has changed for `quiet_s` seconds, in a thread that no exit waits for.

    For one event loop.
    """

    def __init__(self, act: Callable[[], object], quiet_s: float = QUIET_S) -> None:
        self._act, self._quiet_s = act, quiet_s
        self._timer: asyncio.TimerHandle | None = None
        self._thread = threading.Thread()

    def changed(self) -> None:
        """Something changed: wait anew."""
        self.close()
        self._timer = asyncio.get_running_loop().call_later(self._quiet_s, self._begin)

    def close(self) -> None:
        """What has not begun will not."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        if self._thread.is_alive():  # what it does may have missed the newest change
            self.changed()
            return
        self._thread = threading.Thread(target=self._act, name="settling", daemon=True)
        self._thread.start()
