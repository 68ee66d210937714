"""Looking into a mesh: its facts, and why tokens went to the experts they went to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expertmesh.errors import DataLoss, InvalidRequest
from expertmesh_api.v1 import common_pb2, gating_pb2, operations_pb2


@dataclass(frozen=True, slots=True)
class MeshFacts:
    """The control loop itself.

    `version` is empty for servers older than the question, `epoch` the (term, change) of the route table, `time_ms` its
    clock as Unix milliseconds; None if it did not say.
    """

    version: str
    epoch: tuple[int, int]
    time_ms: int | None
    workers: int


@dataclass(frozen=True, slots=True)
class ExpertChoice:
    """One expert's part in one decision. `margin` is how far the score was from the other answer; positive if picked.

    It is infinite where no other answer was possible.
    """

    index: int
    score: float
    picked: bool
    weight: float
    margin: float
    worker_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LayerExplanation:
    """The decisions of one layer, `tokens[token][expert]`; `rule` says in a line how experts are picked."""

    layer: int
    rule: str
    tokens: tuple[tuple[ExpertChoice, ...], ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The way of a text: its tokens with their text, and every layer's decisions about each."""

    model: str
    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]
    layers: tuple[LayerExplanation, ...]


def mesh_facts(message: operations_pb2.ListNodesResponse) -> MeshFacts:
    epoch = (message.epoch.term, message.epoch.n)
    return MeshFacts(message.server_version, epoch, message.server_time_ms or None, len(message.nodes))


def explain_text_request(text: str, model: str, as_question: bool) -> gating_pb2.ExplainTextRequest:
    """The wire form of a question about a text.

    Raises:
        InvalidRequest: there is no text.

    """
    if not text:
        raise InvalidRequest("text is empty: there is nothing to explain")
    return gating_pb2.ExplainTextRequest(model=model, text=text, as_question=as_question)


def explain_rows_request(rows: NDArray[np.float32], layer: int, model: str) -> gating_pb2.ExplainRequest:
    """The wire form of a question about rows float32 [T, hidden].

    Raises:
        InvalidRequest: the rows have another shape or no numbers, or the layer is negative.

    """
    values = np.ascontiguousarray(rows, "<f4")
    if values.ndim != 2:
        raise InvalidRequest(f"rows must have the shape [T, hidden], not {list(np.shape(rows))}")
    if layer < 0:
        raise InvalidRequest(f"layer {layer} is negative: layers are numbered from 0")
    tensor = common_pb2.Tensor(name="rows", dtype="float32", shape=values.shape, data=values.tobytes())
    return gating_pb2.ExplainRequest(model=model, layer=layer, rows=tensor)


def explanation(message: gating_pb2.ExplainTextResponse) -> Explanation:
    layers = tuple(_layer(layer) for layer in message.layers)
    return Explanation(message.model, tuple(message.token_ids), tuple(message.pieces), layers)


def rows_explanation(message: gating_pb2.ExplainResponse, layer: int) -> LayerExplanation:
    tokens = tuple(
        tuple(ExpertChoice(e.index, e.score, e.picked, e.weight, e.margin, tuple(e.workers)) for e in row.experts)
        for row in message.rows
    )
    return LayerExplanation(layer, message.rule, tokens)


def _layer(message: gating_pb2.LayerExplanation) -> LayerExplanation:
    holders = [tuple(entry.worker_ids) for entry in message.holders]
    columns = [_values(tensor).tolist() for tensor in (message.score, message.picked, message.weight, message.margin)]
    tokens = tuple(
        tuple(
            ExpertChoice(index, score, bool(picked), weight, margin, held)
            for index, (score, picked, weight, margin, held) in enumerate(zip(*row, holders, strict=True))
        )
        for row in zip(*columns, strict=True)
    )
    return LayerExplanation(message.layer, message.rule, tokens)


def _values(tensor: common_pb2.Tensor) -> NDArray[Any]:
    try:
        return np.frombuffer(tensor.data, np.dtype(tensor.dtype).newbyteorder("<")).reshape(tuple(tensor.shape))
    except (TypeError, ValueError) as error:
        raise DataLoss(f"the server's values {tensor.name!r} do not fit their shape: {error}") from error
