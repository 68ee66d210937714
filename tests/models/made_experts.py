"""Experts with random weights, and what they compute according to numpy (no code shared with the runtime)."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np

from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.bundle.manifest import Blob
from expertmesh_common.bundle.tensors import encode_tensors
from expertmesh_common.graphs.expert import ExpertShape

HIDDEN, WIDTH = 64, 32
SMALL = ExpertShape(HIDDEN, WIDTH, "fp32")
SMALL_INT4 = ExpertShape(HIDDEN, WIDTH, "int4")
_PLAIN = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def make_tensors(
    shape: ExpertShape, seed: int, *, biased: bool = False, block: int | None = None
) -> dict[str, np.ndarray]:
    """`block` is that of new files unless given."""
    random = np.random.default_rng(seed)
    matrices = {"gate_up": (shape.hidden, 2 * shape.width), "down": (shape.width, shape.hidden)}
    block = block or (32 if shape.hidden % 128 or shape.width % 128 else 128)
    tensors = {}
    for name, (inner, outer) in matrices.items():
        if shape.precision in _PLAIN:
            tensors[name] = (random.standard_normal((inner, outer)) * 0.1).astype(_PLAIN[shape.precision])
            continue
        size, in_block = (outer, inner // block), block if shape.precision == "int8" else block // 2
        tensors[f"{name}_q"] = random.integers(0, 256, (*size, in_block), dtype=np.uint8)
        peak = 0.32 if shape.precision == "int8" else 0.02 * 16
        codes = 256 if shape.precision == "int8" else 16
        tensors[f"{name}_s"] = (random.random(size, dtype=np.float32) + 0.5) * np.float32(peak / codes)
    if biased:
        tensors |= {
            f"{name}_bias": random.standard_normal(outer).astype(np.float32) for name, (_, outer) in matrices.items()
        }
    return tensors


def store_expert(
    root: Path, shape: ExpertShape, seed: int, *, biased: bool = False, block: int | None = None
) -> tuple[Path, Blob]:
    store = BlobStore(root)
    blob = store.put(encode_tensors(make_tensors(shape, seed, biased=biased, block=block)))
    return store.path(blob.digest), blob


def reference(shape: ExpertShape, seed: int, rows: np.ndarray, *, biased: bool = False) -> np.ndarray:
    """float64 outputs of the expert that `make_tensors` makes."""
    tensors = make_tensors(shape, seed, biased=biased)
    gate_up, down = (_matrix(tensors, name, shape.precision) for name in ("gate_up", "down"))
    both = rows.astype(np.float64) @ gate_up + tensors.get("gate_up_bias", 0.0)
    gate, up = both[:, : shape.width], both[:, shape.width :]
    if shape.activation == "clamped-swiglu":
        gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
        gated = (up + 1) * gate / (1 + np.exp(-1.702 * gate))
    else:
        gated = up * gate / (1 + np.exp(-gate))
    return gated @ down + tensors.get("down_bias", 0.0)


def _matrix(tensors: dict[str, np.ndarray], name: str, precision: str) -> np.ndarray:
    if name in tensors:
        return tensors[name].astype(np.float64)
    codes, scales = tensors[f"{name}_q"], tensors[f"{name}_s"].astype(np.float64)
    if precision == "int4":
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*scales.shape, -1)
    values = codes.astype(np.float64) - (8 if precision == "int4" else 128)
    return (values * scales[..., np.newaxis]).reshape(len(codes), -1).T
