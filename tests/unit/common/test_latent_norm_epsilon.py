"""The norms inside latent attention may have an epsilon of their own; trunks that have none are as they always were."""

from dataclasses import replace

import onnx
import pytest

from expertmesh_common.bundle.parts import Trunk
from expertmesh_common.bundle.tensors import encode_tensors, tensor_views
from expertmesh_common.graphs.trunk import TrunkShape, segment_graph
from models.attention_kinds import KINDS, Kind, random_segments

LATENT_KINDS = [name for name, kind in KINDS.items() if kind.first.latent]


def shape_of(kind: Kind) -> TrunkShape:
    first = kind.first
    return TrunkShape(2, 64, first.heads, first.kv_heads, first.head_dim, 1e-5, kind.shapes)


def graph_of(kind: Kind, shape: TrunkShape) -> bytes:
    data = encode_tensors(random_segments(kind)[1])
    return segment_graph(shape, 1, "fp32", tensor_views(data, len(data), "layer"), "weights")


def epsilons(graph: bytes) -> dict[str, float]:
    """Of every norm of a graph, by the name of its weights."""
    return {
        next(name for name in node.input if name.endswith("_norm")): attribute.f
        for node in onnx.load_from_string(graph).graph.node
        for attribute in node.attribute
        if attribute.name == "epsilon"
    }


@pytest.mark.parametrize("name", LATENT_KINDS)
def test_only_the_norms_inside_latent_attention_have_it(name: str) -> None:
    kind = KINDS[name]
    found = epsilons(graph_of(kind, replace(shape_of(kind), latent_norm_epsilon=0.5)))

    layers = {"attn_norm", "ffn_norm"}
    assert found.keys() > layers
    assert {norm: round(value, 6) for norm, value in found.items()} == {
        norm: 1e-5 if norm in layers else 0.5 for norm in found
    }


@pytest.mark.parametrize("name", KINDS)
def test_without_it_a_graph_is_byte_for_byte_as_with_the_same_epsilon(name: str) -> None:
    kind = KINDS[name]
    shape = shape_of(kind)

    assert graph_of(kind, shape) == graph_of(kind, replace(shape, latent_norm_epsilon=shape.norm_epsilon))


def test_attention_without_a_latent_does_not_know_it() -> None:
    kind = KINDS["norm of heads"]
    shape = shape_of(kind)

    assert graph_of(kind, shape) == graph_of(kind, replace(shape, latent_norm_epsilon=0.5))


def test_the_trunk_of_an_older_bundle_is_read() -> None:
    older = {
        "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "vocabulary": 300, "context_tokens": 128,
        "rope_base": 10000.0, "norm_epsilon": 1e-5, "activation": "swiglu", "segments": [],
    }  # fmt: skip

    assert Trunk.model_validate(older).latent_norm_epsilon is None
