"""Lanes: the places at which frames are computed, and the row buffers that sessions are bound to."""

from __future__ import annotations

import itertools
import queue

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.channel.frame import Request
from expertmesh_common.errors import DeadlinePassed

Rows = NDArray[np.float32]


class Lane:
    """Held by one frame at a time, so what belongs to a lane needs no lock."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._buffers: dict[int, tuple[Rows, Rows]] = {}

    def buffers(self, hidden: int) -> tuple[Rows, Rows]:
        """One row in and one row out, float32 [1, hidden] each, the same two for every expert of that size."""
        found = self._buffers.get(hidden)
        if found is None:
            # An expert is bound while others run: setdefault, so that two loads agree on the buffers.
            fresh = (np.zeros((1, hidden), np.float32), np.zeros((1, hidden), np.float32))
            found = self._buffers.setdefault(hidden, fresh)
        return found


class Lanes:
    """`count` lanes: how many frames a worker computes at once."""

    def __init__(self, count: int) -> None:
        self.all = tuple(Lane(number) for number in range(count))
        self._free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        self._waiting: dict[int, Request | None] = {}
        self._places = itertools.count()
        for lane in self.all:
            self._free.put(lane)

    @property
    def waiting(self) -> int:
        """How many wait for a lane now."""
        return len(self._waiting)

    @property
    def waiting_frames(self) -> list[Request]:
        """The frames among them."""
        return [frame for frame in list(self._waiting.values()) if frame is not None]

    def take(self, timeout_s: float, frame: Request | None = None) -> Lane:
        """A free lane, for `frame` if it is for one, waiting for one if need be.

        Raises:
            DeadlinePassed: none became free in time.

        """
        try:
            return self._free.get_nowait()
        except queue.Empty:
            return self._wait(timeout_s, frame)

    @property
    def all_taken(self) -> bool:
        """Whether a frame would have to wait now."""
        return self._free.empty()

    def take_free(self) -> Lane | None:
        """A lane that is free now, None if there is none."""
        try:
            return self._free.get_nowait()
        except queue.Empty:
            return None

    def give(self, lane: Lane) -> None:
        self._free.put(lane)

    def quiesce(self) -> None:
        """Return when every frame that was running at the call has ended. For one caller at a time."""
        held = [self._free.get() for _ in self.all]
        for lane in held:
            self._free.put(lane)

    def _wait(self, timeout_s: float, frame: Request | None) -> Lane:
        place = next(self._places)
        self._waiting[place] = frame
        try:
            return self._free.get(timeout=max(timeout_s, 0.0))
        except queue.Empty:
            raise DeadlinePassed(
                f"the frame waited {timeout_s * 1e3:.0f} ms for one of {len(self.all)} lanes"
            ) from None
        finally:
            del self._waiting[place]
