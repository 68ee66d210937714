"""From the engine's thread to the event loop: one hand-over per step, whatever the number of parcels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from expertmesh_controller.gateway.batching.handing import Parcel

__all__ = ["Outbox"]


class Outbox:
    """Collects parcels; `flush` has `deliver` called with all of them in the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[list[Parcel]], None]) -> None:
        self._loop, self._deliver = loop, deliver
        self._parcels: list[Parcel] = []

    def put(self, parcel: Parcel) -> None:
        self._parcels.append(parcel)

    def flush(self) -> None:
        if self._parcels:
            parcels, self._parcels = self._parcels, []
            self._loop.call_soon_threadsafe(self._deliver, parcels)
