"""Buffers and sessions brought together once, so that a call afterwards passes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.parts import Trunk
from expertmesh_common.errors import InvalidInput
from expertmesh_common.graphs.rope import rope_tables, rope_tables_of

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, IOBinding, OrtValue

__all__ = ["bind", "require_context", "rope_inputs", "value"]


def value(buffer: np.ndarray[Any, Any]) -> OrtValue:
    """An OrtValue over the buffer itself: later writes into it are seen by bound calls."""
    from onnxruntime import OrtValue  # noqa: PLC0415 - heavy, and only here

    return OrtValue.ortvalue_from_numpy(buffer)


def bind(session: InferenceSession, values: Mapping[str, OrtValue]) -> IOBinding:
    """A binding of every input and output that the session has; `values` may have more."""
    binding = session.io_binding()
    for one in session.get_inputs():
        binding.bind_ortvalue_input(one.name, values[one.name])
    for one in session.get_outputs():
        binding.bind_ortvalue_output(one.name, values[one.name])
    return binding


def rope_inputs(trunk: Trunk, context_tokens: int) -> dict[str, OrtValue]:
    """The tables `rope_cos` and `rope_sin` that all segments share."""
    if trunk.rope is None:
        tables = rope_tables(trunk.rope_base, trunk.head_dim, context_tokens)
    else:
        tables = rope_tables_of(trunk.rope, context_tokens)
    return {name: value(table) for name, table in zip(("rope_cos", "rope_sin"), tables, strict=True)}


def require_context(bundle: Bundle, context_tokens: int) -> None:
    """Raise InvalidInput if the model was not made for texts of this length."""
    allowed = bundle.manifest.trunk.context_tokens
    if context_tokens > allowed:
        name = bundle.manifest.name
        raise InvalidInput(f"context of {context_tokens} tokens is too long: {name} allows up to {allowed}")
