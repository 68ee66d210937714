"""Handing on the trace of a process that traces with OpenTelemetry, without asking for OpenTelemetry."""

from __future__ import annotations

import sys

from expertmesh.channel import Metadata

_TRACING = "opentelemetry.trace"


def trace_metadata() -> Metadata:
    """The current span as W3C `traceparent` (and `tracestate`) metadata; nothing where this process does not trace."""
    if _TRACING not in sys.modules:  # who traces has imported it already
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
