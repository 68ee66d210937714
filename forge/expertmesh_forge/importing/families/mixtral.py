"""Mixtral: softmax over all experts, the picked ones renormalised."""

from __future__ import annotations

from typing import ClassVar

from expertmesh_forge.importing.config import Values
from expertmesh_forge.importing.families.base import Family
from expertmesh_forge.importing.planning import GatePlan

__all__ = ["Mixtral"]


class Mixtral(Family):
    """Published names are `block_sparse_moe.experts.N.w1` (gate), `w3` (up), `w2` (down)."""

    model_type = "mixtral"
    defaults: ClassVar[Values] = {"rope_theta": 1e6, "rms_norm_eps": 1e-5}
    block = ("block_sparse_moe", "mlp")
    experts_keys = ("num_local_experts", "num_experts")
    expert_names = ("w1", "w3", "w2")

    def gate(self) -> GatePlan:
        return GatePlan("softmax", self.picked(), "normalised")

    def window(self, layer: int) -> int:  # noqa: ARG002 - the same in every layer
        return self.config.size("sliding_window") if self.config.has("sliding_window") else 0
