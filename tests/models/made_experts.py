"""Experts with random weights, and what they compute according to numpy (no code shared with the runtime)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.bundle.manifest import Blob
from expertmesh_common.bundle.tensors import encode_tensors
from expertmesh_common.graphs.expert import ExpertShape

HIDDEN, WIDTH = 64, 32
SMALL = ExpertShape(HIDDEN, WIDTH, "fp32")
SMALL_INT4 = ExpertShape(HIDDEN, WIDTH, "int4")


def make_tensors(shape: ExpertShape, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    matrices = {"gate_up": (shape.hidden, 2 * shape.width), "down": (shape.width, shape.hidden)}
    if shape.precision == "fp32":
        return {name: (random.standard_normal(size) * 0.1).astype(np.float32) for name, size in matrices.items()}
    tensors = {}
    for name, (inner, outer) in matrices.items():
        tensors[f"{name}_q"] = random.integers(0, 256, (outer, inner // 32, 16), dtype=np.uint8)
        tensors[f"{name}_s"] = (random.random((outer, inner // 32), dtype=np.float32) + 0.5) * 0.02
    return tensors


def store_expert(root: Path, shape: ExpertShape, seed: int) -> tuple[Path, Blob]:
    store = BlobStore(root)
    blob = store.put(encode_tensors(make_tensors(shape, seed)))
    return store.path(blob.digest), blob


def reference(shape: ExpertShape, seed: int, rows: np.ndarray) -> np.ndarray:
    """float64 outputs of the expert that `make_tensors` makes."""
    tensors = make_tensors(shape, seed)
    gate_up, down = (_matrix(tensors, name) for name in ("gate_up", "down"))
    both = rows.astype(np.float64) @ gate_up
    gate, up = both[:, : shape.width], both[:, shape.width :]
    return (gate / (1 + np.exp(-gate)) * up) @ down


def _matrix(tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name in tensors:
        return tensors[name].astype(np.float64)
    packed, scales = tensors[f"{name}_q"], tensors[f"{name}_s"].astype(np.float64)
    outer, blocks, _ = packed.shape
    values = np.empty((outer, blocks, 32))
    values[..., 0::2] = (packed & 15).astype(np.float64) - 8
    values[..., 1::2] = (packed >> 4).astype(np.float64) - 8
    return (values * scales[..., np.newaxis]).reshape(outer, blocks * 32).T
