"""An import without reading any weight: what cannot work is said before anything is written."""

from __future__ import annotations

import re
from collections.abc import Sequence

from expertmesh_common.bundle.parts import Precision
from expertmesh_common.errors import InvalidInput
from expertmesh_common.graphs.expert import ExpertShape
from expertmesh_forge.errors import UnsupportedModel
from expertmesh_forge.formats import encode_matrix
from expertmesh_forge.importing.families.base import Family
from expertmesh_forge.importing.outline import Outline, refuse_strangers
from expertmesh_forge.importing.planning import LayerPlan, ModelPlan, Weights

__all__ = ["rehearse", "require_possible"]


def require_possible(family: Family, outline: Outline) -> None:
    """Hold what a plan is as large as against the tensors: the vocabulary, the layers, and the heads of the first one.

    Raises:
        SourceError: the config has other layers than the tensors.
        BadWeights: a tensor is missing, or not of the size that the config says.

    """
    family.embedding(outline)
    _require_layers(family, outline)
    family.trunk(outline, 0)


def rehearse(family: Family, plan: ModelPlan, outline: Outline, precisions: Sequence[Precision]) -> None:
    """Ask for every tensor but the embedding.

    Raises:
        UnsupportedModel: a size is not served, or tensors are left over.
        BadWeights: a tensor is missing or misshapen.

    """
    try:
        for index, layer in enumerate(plan.layers):
            plan.trunk.attention_of(index)
            _fits(family.trunk(outline, index), precisions)
            _rehearse_experts(family, index, layer, outline)
            for precision in precisions if layer.experts else ():
                ExpertShape(plan.hidden, layer.expert_width, precision, plan.activation)
        _fits(family.head(outline), precisions)
    except InvalidInput as error:
        raise UnsupportedModel(f"{family.config.path}: {error}") from error
    refuse_strangers(outline, family.ignored())


def _require_layers(family: Family, outline: Outline) -> None:
    held = _layers_held(outline, family.model(outline).prefixes)
    if family.layers != held:
        raise family.config.wrong("num_hidden_layers", f"{held}, as many as the tensors in {outline.folder} are of")


def _layers_held(outline: Outline, prefixes: Sequence[str]) -> int:
    """Layers that tensors belong to, those that predict a token further on aside."""
    layer = re.compile(rf"((?:{'|'.join(map(re.escape, prefixes))})layers\.\d+\.).*")
    held = {found[1] for found in map(layer.fullmatch, outline.tensors) if found}
    return sum(not outline.has(f"{name}eh_proj.weight") for name in held)


def _rehearse_experts(family: Family, index: int, layer: LayerPlan, outline: Outline) -> None:
    if layer.gate is None:
        return
    block = family.layer(outline, index).below(*family.block)
    family.router(block)
    for number in range(layer.experts):
        family.expert(block, number)


def _fits(weights: Weights, precisions: Sequence[Precision]) -> None:
    """Store one row of every matrix: whether a precision takes it depends on how long its rows are."""
    for name, matrix in weights.matrices.items():
        for precision in precisions:
            encode_matrix(name, matrix[:1], precision)
