"""A dense decoder of the Llama family, as plain frozen data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from expertmesh_common.bundle.parts import Rope

__all__ = ["DenseConfig", "DenseLayer", "DenseModel", "Floats", "SourceInfo"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DenseConfig:
    """Sizes and constants of the decoder; every size counts elements. Without `rope`, `rope_base` says it all."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context_tokens: int
    rope_base: float
    norm_eps: float
    rope: Rope | None = None

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """One decoder layer; matrices are float32 [out, in] with Q and K in `rotate_half` order."""

    attn_norm: Floats
    q: Floats
    k: Floats
    v: Floats
    o: Floats
    ffn_norm: Floats
    gate: Floats
    up: Floats
    down: Floats


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """Where the weights come from, for the manifest."""

    name: str
    licence: str
    file_name: str
    file_sha256: str
    weight_formats: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DenseModel:
    """A whole dense decoder.

    `embedding` and `head` are float32 [vocab, hidden]; with tied embeddings they are one array.
    """

    config: DenseConfig
    embedding: Floats
    layers: tuple[DenseLayer, ...]
    final_norm: Floats
    head: Floats
    source: SourceInfo

    @property
    def tied(self) -> bool:
        return self.head is self.embedding
