"""The Gating service: the gates that the gateway itself calls, over gRPC."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from expertmesh_api.v1 import common_pb2, gating_pb2, gating_pb2_grpc
from expertmesh_common.access.identity import caller_name
from expertmesh_common.errors import InvalidInput, NotHere
from expertmesh_controller.gateway.answering import Caller
from expertmesh_controller.gateway.gating.explain import Explanation
from expertmesh_controller.gateway.gating.gate import Gate
from expertmesh_controller.gateway.gating.tensors import to_tensor

MAX_ROWS = 4096
Workers = Callable[[str, int], Mapping[int, Sequence[str]]]
"""(model, layer) -> expert index -> worker ids that hold it now."""

if TYPE_CHECKING:  # the class takes type arguments in its stubs only
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext


class _Question(Protocol):
    """What both requests have."""

    model: str
    layer: int
    rows: common_pb2.Tensor


class ExplainsTexts(Protocol):
    """What runs a text through a model."""

    async def explain_text(
        self, request: gating_pb2.ExplainTextRequest, deadline_s: float | None, caller: Caller
    ) -> gating_pb2.ExplainTextResponse: ...


class GatingService(gating_pb2_grpc.GatingServicer):
    """Answers for the gates of every served model, `gates[model][layer]`; gates alone cannot explain texts."""

    def __init__(
        self, gates: Mapping[str, Sequence[Gate]], workers: Workers, texts: ExplainsTexts | None = None
    ) -> None:
        self._gates = gates
        self._workers = workers
        self._texts = texts

    async def Route(self, request: gating_pb2.RouteRequest, context: Context) -> gating_pb2.RouteResponse:  # noqa: ARG002, N802
        routing = self._gate(request).route(rows_of(request.rows))
        return gating_pb2.RouteResponse(
            row_index=to_tensor("row_index", routing.row),
            expert_index=to_tensor("expert_index", routing.expert),
            weight=to_tensor("weight", routing.weight),
        )

    async def Explain(self, request: gating_pb2.ExplainRequest, context: Context) -> gating_pb2.ExplainResponse:  # noqa: ARG002, N802
        explanation = self._gate(request).explain(rows_of(request.rows))
        workers = self._workers(request.model, request.layer)
        rows = [_row(explanation, t, workers) for t in range(len(explanation.score))]
        return gating_pb2.ExplainResponse(rule=explanation.rule, rows=rows)

    async def ExplainText(  # noqa: N802
        self, request: gating_pb2.ExplainTextRequest, context: Context
    ) -> gating_pb2.ExplainTextResponse:
        if self._texts is None:
            raise NotHere("no text can be explained here: this server has gates, but no model to run texts through")
        return await self._texts.explain_text(request, context.time_remaining(), Caller(caller_name()))

    def _gate(self, request: _Question) -> Gate:
        gates = self._gates.get(request.model)
        if gates is None:
            raise NotHere(f"model {request.model!r} is not served here; served: {', '.join(sorted(self._gates))}")
        if request.layer >= len(gates):
            raise InvalidInput(
                f"layer {request.layer} does not exist: {request.model} has layers 0 to {len(gates) - 1}"
            )
        return gates[request.layer]


def _row(explanation: Explanation, t: int, workers: Mapping[int, Sequence[str]]) -> gating_pb2.RowExplanation:
    columns = zip(
        explanation.score[t], explanation.picked[t], explanation.weight[t], explanation.margin[t], strict=True
    )
    return gating_pb2.RowExplanation(
        experts=[
            gating_pb2.ExpertScore(
                index=index,
                score=score,
                picked=bool(picked),
                weight=weight,
                margin=margin,
                workers=workers.get(index, ()),
            )
            for index, (score, picked, weight, margin) in enumerate(columns)
        ]
    )


def rows_of(tensor: common_pb2.Tensor) -> NDArray[np.float32]:
    """A message's rows as float32 [T, hidden].

    Raises:
        InvalidInput: the tensor is not that, is not finite, or has more than `MAX_ROWS` rows.

    """
    shape = tuple(tensor.shape)
    if tensor.dtype != "float32" or len(shape) != 2 or shape[0] > MAX_ROWS:
        raise InvalidInput(f"rows must be float32 [T, hidden] with T <= {MAX_ROWS}, got {tensor.dtype!r} {list(shape)}")
    if len(tensor.data) != 4 * shape[0] * shape[1]:
        raise InvalidInput(f"rows of shape {list(shape)} need {4 * shape[0] * shape[1]} bytes, got {len(tensor.data)}")
    rows = np.frombuffer(tensor.data, "<f4").reshape(shape)
    if not np.isfinite(rows).all():
        raise InvalidInput("rows contain NaN or infinity; every value must be finite")
    return rows
