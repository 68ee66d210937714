"""How a frame carries the trace that it belongs to: as one more tensor, which whoever does not trace passes over."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from expertmesh_common.channel.frame import Request
from expertmesh_common.channel.layout import Array

__all__ = ["TRACE", "trace_tensor", "traceparent_of"]

TRACE = "trace"
_MOST_BYTES = 128
"""A W3C traceparent has 55; a later version of it may have some more."""


def trace_tensor(traceparent: str, rows: int) -> Mapping[str, Array]:
    """The tensor, uint8, to add behind `rows` rows; padded, because no tensor may be shorter than the rows are many."""
    text = traceparent.encode()
    return {TRACE: np.frombuffer(text.ljust(rows, b"\0"), np.uint8)}


def traceparent_of(request: Request) -> str | None:
    """The W3C traceparent of the span that sent the request; None when it brings none."""
    found = request.tensors.get(TRACE)
    if found is None or found.dtype != np.uint8 or found.ndim != 1:
        return None
    return found[:_MOST_BYTES].tobytes().rstrip(b"\0").decode("ascii", "replace")
