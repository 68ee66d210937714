"""Which of several gateways is asked next."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable

AVOID_S = 5.0
"""For how long an address that failed comes after those that did not; it is still tried when they fail too."""


class Picker:
    """Spreads the calls of one client over `count` addresses. Any thread may use it."""

    def __init__(self, count: int, now: Callable[[], float] = time.monotonic, first: int | None = None) -> None:
        self._failed_at: list[float | None] = [None] * count
        self._now = now
        # Clients begin at different addresses, or the first would serve everyone who asks once.
        self._turns = itertools.count(random.randrange(count) if first is None else first)

    def order(self) -> list[int]:
        """Every address once, in the order to try them; each call begins at the next one."""
        count, first, now = len(self._failed_at), next(self._turns), self._now()
        ring = [(first + step) % count for step in range(count)]
        return sorted(ring, key=lambda place: self._avoided(place, now))

    def failed(self, place: int) -> None:
        self._failed_at[place] = self._now()

    def worked(self, place: int) -> None:
        self._failed_at[place] = None

    def _avoided(self, place: int, now: float) -> bool:
        failed_at = self._failed_at[place]
        return failed_at is not None and now - failed_at < AVOID_S


class Way:
    """One call's way through the addresses: each is tried once before any is tried again."""

    def __init__(self, picker: Picker) -> None:
        self._picker = picker
        self._left: list[int] = []
        self._works = False
        self.place = -1

    def next(self) -> int:
        """Go on to the next address."""
        self._left = self._left or self._picker.order()
        self.place = self._left.pop(0)
        return self.place

    def worked(self) -> None:
        """What was asked for comes from here."""
        if not self._works:
            self._works = True
            self._picker.worked(self.place)

    def failed(self, *, down: bool) -> bool:
        """Leave the address (`down`: others should avoid it for a while); whether another is still to be tried."""
        if down:
            self._picker.failed(self.place)
        if self._works:
            self._works = False
            self._left = [place for place in self._picker.order() if place != self.place]
        return bool(self._left)
