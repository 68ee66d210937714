"""The gate of one layer: filter -> score -> pick -> weigh, configured by the bundle's data only."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from expertmesh_common.bundle import manifest
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.tensors import Array, read_tensors
from expertmesh_common.errors import CorruptData, InvalidInput
from expertmesh_controller.gateway.gating.explain import Explanation, margins
from expertmesh_controller.gateway.gating.groups import GroupLimit
from expertmesh_controller.gateway.gating.one_row import row_picker
from expertmesh_controller.gateway.gating.pickers import PICKERS, Mask
from expertmesh_controller.gateway.gating.routing import Routing, RowRouting
from expertmesh_controller.gateway.gating.scorers import SCORERS, Floats, Logits, floats
from expertmesh_controller.gateway.gating.weightings import WEIGHTINGS

_NO_BLOB = manifest.Blob(digest="0" * 64, size_bytes=1)
_DENSE = manifest.Gate(scorer="linear", picker="top_k", max_k=1, weights=_NO_BLOB)
MAX_REMEMBERED = 4096  # routings of single rows; a layer of 8 experts has 256


class Gate:
    """Chooses experts for rows. Safe for several threads: the hot path only reads, and remembers immutable answers.

    Raises:
        CorruptData: the tensors do not fit each other or the configuration.

    """

    def __init__(self, config: manifest.Gate, tensors: Mapping[str, Array]) -> None:
        self._logits = Logits(tensors)
        self.hidden, self.experts = self._logits.shape
        self._row_shape = (1, self.hidden)
        self._scorer = SCORERS[config.scorer]
        self._pick_bias = _pick_bias(tensors, self.experts)
        self._groups = GroupLimit(config.groups, self.experts) if config.groups else None
        self._picker = PICKERS[config.picker](config)
        self._weighting = WEIGHTINGS[config.weighting](config)
        self._scale = np.float32(config.scale)
        self.weight_on = config.weight_on
        self._pick_row = row_picker(config, self.experts, self._pick_bias)
        self._remembered: dict[bytes, RowRouting] = {}

    @property
    def rule(self) -> str:
        """How experts are picked, in a line."""
        rule = self._picker.rule(self.experts)
        return f"{rule}, {self._groups.rule}" if self._groups else rule

    def score(self, rows: Floats) -> Floats:
        """Rows float32 [T, hidden] -> scores float32 [T, experts].

        Raises:
            InvalidInput: the rows have another shape or dtype.

        """
        if rows.ndim != 2 or rows.shape[1] != self.hidden or rows.dtype != np.float32:
            raise InvalidInput(f"gate got rows {rows.dtype} {rows.shape}; it takes float32 [any, {self.hidden}]")
        return self._scorer(self._logits(rows))

    def pick(self, scores: Floats, allowed: Mask | None = None) -> Mask:
        """Picked experts bool [T, experts]; experts outside `allowed` bool [experts] are never picked."""
        return self._picker(self._pickable(scores, allowed))

    def route(self, rows: Floats, allowed: Mask | None = None) -> Routing:
        """The experts and weights of rows float32 [T, hidden]; T may be 0. Errors as `score`."""
        scores = self.score(rows)
        return self._routing(scores, self._picker(self._pickable(scores, allowed)), allowed)

    def route_row(self, row: Floats) -> RowRouting | None:
        """As `route`, bit for bit, for one row float32 [1, hidden]; None for anything else, and where logits are huge.

        Where the weights follow from the picked set a routing is remembered by it: decoding one token then costs a
        product, a comparison and a look-up. Call it where numpy does not warn of overflows and invalid values.
        """
        if row.shape != self._row_shape or row.dtype != np.float32 or not self.experts:
            return None
        logits = self._logits.of_row(row)
        if not math.isfinite(logits.dot(logits)):
            return None
        if self._pick_row is not None:
            return self._pick_row(logits)
        scores = self._scorer(logits[np.newaxis])
        picked = self._picker(self._pickable(scores, None))
        if not self._weighting.by_choice:
            return self._row_routing(scores, picked, recurs=False)
        key = picked.tobytes()
        found = self._remembered.get(key)
        if found is None:
            recurs = len(self._remembered) < MAX_REMEMBERED  # nobody may remember what comes of one that is forgotten
            found = self._row_routing(scores, picked, recurs=recurs)
            if recurs:
                self._remembered[key] = found
        return found

    def explain(self, rows: Floats, allowed: Mask | None = None) -> Explanation:
        """The decision of `route` on rows float32 [T, hidden], told whole. Errors as `score`."""
        scores = self.score(rows)
        pickable = self._pickable(scores, allowed)
        picked = self._picker(pickable)
        routing = self._routing(scores, picked, allowed)
        weight = np.zeros(scores.shape, np.float32)
        weight[routing.row, routing.expert] = routing.weight
        return Explanation(self.rule, scores, picked, weight, margins(pickable, picked, self._picker.threshold))

    def _pickable(self, scores: Floats, allowed: Mask | None) -> Floats:
        """What the picker sees: corrected scores, -inf for experts outside `allowed` or the groups that are kept."""
        if self._pick_bias is not None:
            scores = scores + self._pick_bias
        if allowed is not None:
            scores = np.where(allowed, scores, np.float32(-np.inf))
        return scores if self._groups is None else self._groups(scores)

    def _routing(self, scores: Floats, picked: Mask, allowed: Mask | None) -> Routing:
        row, expert = picked.nonzero()
        weight = self._weighting(scores, picked, allowed)[row, expert]
        if self._scale != 1:
            weight *= self._scale
        return Routing(len(picked), row.astype(np.int32), expert.astype(np.int32), weight)

    def _row_routing(self, scores: Floats, picked: Mask, *, recurs: bool) -> RowRouting:
        found = self._routing(scores, picked, None)
        return RowRouting(tuple(found.expert.tolist()), tuple(found.weight.tolist()), recurs)


def _pick_bias(tensors: Mapping[str, Array], experts: int) -> Floats | None:
    if "pick_bias" not in tensors:
        return None
    bias = floats(tensors, "pick_bias", 1)
    if bias.size != experts:
        raise CorruptData(f"gate has {experts} experts and pick_bias {bias.shape}; they must agree")
    return bias


def load_gates(bundle: Bundle) -> tuple[Gate, ...]:
    """The gates of a bundle, one per layer; that of a dense layer has no experts and picks none.

    Raises:
        CorruptData: a gate's blob is not what the manifest says.

    """
    return tuple(_gate(bundle, layer) for layer in bundle.manifest.layers)


def _gate(bundle: Bundle, layer: manifest.Layer) -> Gate:
    hidden = bundle.manifest.trunk.hidden
    if layer.gate is None:
        return Gate(_DENSE, {"router": np.zeros((hidden, 0), np.float32), "bias": np.zeros(0, np.float32)})
    gate = Gate(layer.gate, read_tensors(bundle.path(layer.gate.weights)))
    if (gate.hidden, gate.experts) != (hidden, len(layer.experts)):
        raise CorruptData(
            f"the gate of layer {layer.index} is for {gate.experts} experts of hidden {gate.hidden}; the manifest has "
            f"{len(layer.experts)} of {hidden}"
        )
    return gate
