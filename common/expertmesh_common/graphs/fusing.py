"""Whether layers can run in one graph with their experts, which is what numerics `fast` means."""

from __future__ import annotations

from collections.abc import Collection

from expertmesh_common.bundle.manifest import Manifest, Precision
from expertmesh_common.errors import InvalidInput
from expertmesh_common.graphs.local_experts import can_stack

__all__ = ["require_fusable"]


def require_fusable(manifest: Manifest, precision: Precision, held: Collection[int] | None = None) -> None:
    """Raise InvalidInput, naming the layer, if the layers `held` (None: all) cannot run so at this precision."""
    what = f"{manifest.name} cannot be served with numerics `fast` at {precision}"
    layers = [layer for layer in manifest.layers if held is None or layer.index in held]
    for layer in layers:
        if not can_stack(layer, precision):
            gate = layer.gate
            how = "" if gate is None else f" (scorer {gate.scorer}, picker {gate.picker}, weighting {gate.weighting})"
            raise InvalidInput(f"{what}: layer {layer.index} has no fused form{how}; use int4, or numerics `exact`")
    routed = [(len(layer.experts), layer.gate) for layer in layers if layer.gate is not None]
    if len({(experts, gate.picker, gate.max_k) for experts, gate in routed}) > 1:
        raise InvalidInput(f"{what}: its layers differ in experts or in how many are picked; use numerics `exact`")
