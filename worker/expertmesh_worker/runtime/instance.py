"""One loaded expert: its session, and per lane a seat that computes one row without any setup."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from expertmesh_common.bundle.tensors import read_views
from expertmesh_common.graphs.expert import INPUT, OUTPUT, ExpertShape, expert_graph
from expertmesh_common.graphs.matrices import matrix_format
from expertmesh_worker.providers import Provider, Session
from expertmesh_worker.runtime.lanes import Lane, Rows


class Seat:
    """An instance on one lane. Its counters belong to whoever holds the lane, so they need no lock."""

    __slots__ = ("_compute_one", "_run", "busy_ns", "row_in", "row_out", "rows")

    def __init__(self, session: Session, lane: Lane, hidden: int, binds_host_memory: bool) -> None:
        self.rows = 0
        self.busy_ns = 0
        self.row_in, self.row_out = lane.buffers(hidden)
        self._run = session.run
        bind = _bound if binds_host_memory else _copied
        self._compute_one = bind(session, self.row_in, self.row_out)

    def warm(self) -> None:
        """Compute whatever the buffers hold, uncounted: the first run of a session allocates."""
        self._compute_one()

    def one(self) -> None:
        """Compute `row_out` from `row_in`, both float32 [1, hidden]."""
        start = perf_counter_ns()
        self._compute_one()
        self.busy_ns += perf_counter_ns() - start
        self.rows += 1

    def compute(self, rows: Rows) -> Rows:
        """The outputs of `rows`, float32 [n, hidden]; the array is the caller's until the lane's next call."""
        if len(rows) == 1:
            self.row_in[:] = rows
            self.one()
            return self.row_out
        start = perf_counter_ns()
        out: Rows = self._run([OUTPUT], {INPUT: rows})[0]
        self.busy_ns += perf_counter_ns() - start
        self.rows += len(rows)
        return out


class ExpertInstance:
    """A session over the weights in a tensor file, with a seat on every lane.

    Dropping the last reference frees its memory.

    Raises:
        CorruptData: the file does not hold an expert of this shape.

    """

    def __init__(self, shape: ExpertShape, weights: Path, provider: Provider, lanes: Sequence[Lane]) -> None:
        self.shape = shape
        self.hidden = shape.hidden
        self.left_garbage = matrix_format(shape.precision).is_folded
        """Loading needed heap beside what stays: the weights as they were stored."""
        graph = expert_graph(shape, read_views(weights), weights.name)
        session = provider.open(graph, weights.parent, folds_constants=self.left_garbage)
        self.seats = tuple(Seat(session, lane, shape.hidden, provider.binds_host_memory) for lane in lanes)

    @property
    def rows(self) -> int:
        """Rows computed since it was loaded."""
        return sum(seat.rows for seat in self.seats)

    @property
    def busy_ms(self) -> float:
        """Time spent computing them."""
        return sum(seat.busy_ns for seat in self.seats) / 1e6


def _bound(session: Session, row_in: Rows, row_out: Rows) -> Callable[[], None]:
    """The session bound to the two buffers once: 4 us a call, where passing arrays costs 5-8."""
    binding = session.io_binding()
    binding.bind_input(INPUT, "cpu", 0, np.float32, row_in.shape, row_in.ctypes.data)
    binding.bind_output(OUTPUT, "cpu", 0, np.float32, row_out.shape, row_out.ctypes.data)
    return partial(session.run_with_iobinding, binding)


def _copied(session: Session, row_in: Rows, row_out: Rows) -> Callable[[], None]:
    """For providers that compute elsewhere: plain arrays in and out."""

    def compute() -> None:
        row_out[:] = session.run([OUTPUT], {INPUT: row_in})[0]

    return compute
