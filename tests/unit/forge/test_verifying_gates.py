"""Verifying gates: tensors that do not fit the experts are named, each with what it should be."""

from __future__ import annotations

import numpy as np
import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import Manifest, write_manifest
from expertmesh_common.bundle.tensors import encode_tensors, read_tensors
from expertmesh_forge.verifying import verify
from models.tiny_bundle import EXPERTS, HIDDEN, make_tiny_bundle


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    return Bundle(make_tiny_bundle(tmp_path / "tiny"))


def problems(bundle: Bundle, tensors=(), without=(), **fields) -> list[str]:
    """What is wrong with the bundle once the gate of layer 1 has other tensors or fields."""
    document = bundle.manifest.model_dump(mode="json")
    gate = document["layers"][1]["gate"]
    held = read_tensors(bundle.path(bundle.manifest.layers[1].gate.weights)) | dict(tensors)
    blob = bundle.blobs.put(encode_tensors({name: value for name, value in held.items() if name not in without}))
    gate |= {"weights": blob.model_dump(), **fields}
    write_manifest(Manifest.model_validate(document), bundle.folder)
    return verify(Bundle(bundle.folder), lambda *_: None).problems


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("name", "shape"),
    [("router", (HIDDEN, EXPERTS)), ("bias", (EXPERTS,)), ("pick_bias", (EXPERTS,))],
)
def test_a_gate_tensor_that_does_not_fit_the_experts_is_named(bundle, name, shape, dtype):
    wrong = shape if dtype == np.float16 else (*shape[:-1], EXPERTS + 1)
    expected = f"layer 1: gate tensor {name} must be float32 {list(shape)}: {np.dtype(dtype)} {list(wrong)}"
    assert problems(bundle, {name: np.zeros(wrong, dtype)}) == [expected]


def test_a_gate_needs_router_and_bias_but_no_pick_bias(bundle):
    assert problems(bundle, {"pick_bias": np.zeros(EXPERTS, np.float32)}) == []
    found = problems(bundle, without=("router", "bias"), tensors={"pick_bias": np.zeros(EXPERTS, np.float32)})
    assert found == [
        f"layer 1: gate tensor router must be float32 [{HIDDEN}, {EXPERTS}]: no such tensor",
        f"layer 1: gate tensor bias must be float32 [{EXPERTS}]: no such tensor",
    ]


def test_groups_that_do_not_divide_the_experts_are_named(bundle):
    groups = {"kept": 1, "score": "max"}
    assert problems(bundle, groups=groups | {"count": EXPERTS // 2}) == []
    found = problems(bundle, groups=groups | {"count": EXPERTS - 1})
    assert found == [f"layer 1: gate has {EXPERTS - 1} groups, which do not divide its {EXPERTS} experts"]
