"""Epochs that grow over the end of the store that counted them.

A control loop that lost its store, or never had one but memory, counts from the beginning again. Its tables name the
incarnation of their store, so that what is new can be told from what is old.
"""

from __future__ import annotations

from dataclasses import replace

from expertmesh_controller.cluster.routes import Epoch, RouteTable

__all__ = ["Incarnations"]


class Incarnations:
    """Moves the terms of every incarnation behind those of all that were seen before it. For one process."""

    def __init__(self) -> None:
        self._shifts: dict[str, int] = {}
        self._newest_term = 0

    def continued(self, table: RouteTable) -> RouteTable:
        """The table under an epoch of this process: the control loop's own while there is one incarnation."""
        shift = self._shifts.get(table.incarnation)
        if shift is None:
            shift = max(self._newest_term + 1 - table.epoch.term, 0) if self._shifts else 0
            self._shifts[table.incarnation] = shift
        term = table.epoch.term + shift
        self._newest_term = max(self._newest_term, term)
        return replace(table, epoch=Epoch(term, table.epoch.n)) if shift else table
