"""Executing frames: rows through the experts they ask for, weighted and summed in expert order."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import cast

import numpy as np

from expertmesh_common.channel.frame import Reply, Request, Status
from expertmesh_common.errors import DeadlinePassed, InvalidInput
from expertmesh_worker.runtime.lanes import Lane, Lanes, Rows
from expertmesh_worker.runtime.pairs import by_expert
from expertmesh_worker.runtime.recurring import Recurring
from expertmesh_worker.runtime.residents import Layer, Residents

log = logging.getLogger(__name__)

DEFAULT_DEADLINE_MS = 30_000  # of a frame that names none


@dataclass(frozen=True, slots=True)
class Work:
    """Totals since the start."""

    frames: int
    rows: int
    queued_frames: int


class Runtime:
    """What a channel server calls with every request; any number of threads may."""

    def __init__(self, residents: Residents, lanes: Lanes) -> None:
        self.residents = residents
        self._lanes = lanes
        self._frames = [0 for _ in lanes.all]
        self._rows = [0 for _ in lanes.all]
        self.recurring = Recurring(residents, lanes, self._count)

    @property
    def work(self) -> Work:
        return Work(sum(self._frames), sum(self._rows), self._lanes.waiting)

    @property
    def waiting_frames(self) -> list[Request]:
        """Frames that wait for a lane now."""
        return self._lanes.waiting_frames

    def execute(self, request: Request) -> Reply:
        """Answer a frame. Raises nothing: what went wrong is the reply's status and message.

        With reduce `sum`, row t of the reply is the sum over its pairs, in ascending order of experts, of
        weight * expert(row) (or expert(weight * row) with the weight on the input); with `none`, row p is pair p's.
        """
        try:
            lane = self._lanes.take((request.deadline_ms or DEFAULT_DEADLINE_MS) / 1e3, request)
            try:
                return self._execute(request, lane)
            finally:
                self._lanes.give(lane)
        except DeadlinePassed as error:
            return Reply.error(request.seq, Status.DEADLINE, str(error))
        except InvalidInput as error:
            return Reply.error(request.seq, Status.INVALID, str(error))
        except Exception as error:  # the edge of the data plane: the connection and its other frames must live
            log.exception("frame failed seq=%d layer=%d", request.seq, request.layer)
            return Reply.error(request.seq, Status.FAILED, f"layer {request.layer}: {type(error).__name__}: {error}")

    # Finite rows may be so large that sums of experts overflow: the reply says so by its values, and a row of it is
    # the gateway's to judge.
    @np.errstate(over="ignore", invalid="ignore")
    def _execute(self, request: Request, lane: Lane) -> Reply:
        # From here until the lane is given back nothing that this table names can be freed.
        layer = self.residents.layer(request.model, request.layer)
        experts: list[int] = request.expert.tolist()
        missing = [e for e in experts if e not in layer]
        if missing:
            return Reply.stale(request.seq, sorted(set(missing)))
        rows = _checked_rows(request, layer)
        compute = _single_row if len(rows) == 1 else _many_rows
        out = compute(request, lane.number, layer, rows, experts)
        self._count(lane.number, len(experts))
        return Reply.of_rows(request.seq, out)

    def _count(self, lane: int, pairs: int) -> None:
        self._frames[lane] += 1
        self._rows[lane] += pairs


def _checked_rows(request: Request, layer: Layer) -> Rows:
    """The frame's rows, float32 [T, hidden], when they are fit to compute with."""
    rows = request.rows
    if rows.dtype != np.float32 or rows.ndim != 2:
        raise InvalidInput(f"rows are {rows.dtype} {list(rows.shape)}, expected float32 [T, hidden]")
    some = next(iter(layer.values()), None)  # Residents keeps one size per layer
    if some is not None and rows.shape[1] != some.hidden:
        raise InvalidInput(f"rows have {rows.shape[1]} columns, layer {request.layer} has hidden {some.hidden}")
    # Formats that quantise the input would turn NaN into plausible numbers, so the output would not tell.
    if not np.isfinite(rows).all():
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        raise InvalidInput(f"rows {bad[:8].tolist()} of {len(rows)} hold NaN or infinite values")
    return cast(Rows, rows)


def _single_row(request: Request, lane: int, layer: Layer, rows: Rows, experts: list[int]) -> Rows:
    """One row, the hot path of decoding: no sorting by numpy, no gathering, bound buffers only."""
    weights: list[float] = request.weight.tolist()
    pairs = list(zip(experts, weights, strict=True))
    summed = request.reduce == "sum"
    if len(pairs) > 1:
        if len(set(experts)) != len(experts):
            raise InvalidInput(f"experts {experts} of one row are not distinct")
        if summed:
            pairs.sort()
    out = np.zeros((1 if summed else len(pairs), rows.shape[1]), np.float32)
    weigh_input = request.weight_on == "input"
    loaded = False
    for number, (expert, weight) in enumerate(pairs):
        seat = layer[expert].seats[lane]
        if weigh_input:
            np.multiply(rows, np.float32(weight), out=seat.row_in)
        elif not loaded:  # the buffers are the lane's, the same for every expert
            seat.row_in[:] = rows
            loaded = True
        seat.one()
        product = seat.row_out
        if weight != 1.0 and not weigh_input:
            product *= np.float32(weight)
        target = out[:1] if summed else out[number : number + 1]
        target += product
    return out


def _many_rows(request: Request, lane: int, layer: Layer, rows: Rows, experts: list[int]) -> Rows:
    """Rows grouped by expert: one call per expert, whatever the number of rows."""
    summed = request.reduce == "sum"
    out = np.zeros((len(rows) if summed else len(experts), rows.shape[1]), np.float32)
    weight = None if (request.weight == 1.0).all() else request.weight
    for expert, where, pairs in by_expert(request.row, request.expert, len(rows)):
        given = rows[where] if isinstance(where, slice) else rows.take(where, axis=0)
        factor = None if weight is None else weight[pairs][:, np.newaxis]
        if factor is not None and request.weight_on == "input":
            given = given * factor
        product = layer[expert].seats[lane].compute(given)
        if factor is not None and request.weight_on == "output":
            product *= factor
        if summed:
            out[where] += product
        else:
            out[pairs] = product
    return out
