"""Traces over OTLP, when a receiver is configured; without one nothing of OpenTelemetry is even imported."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from expertmesh.version import __version__
from expertmesh_common.errors import InvalidInput, Precondition
from expertmesh_common.observability.request_context import TRACEPARENT

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

__all__ = ["Tracing", "open_tracing", "tracing_while"]

log = logging.getLogger(__name__)

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOL_VARIABLE = "OTEL_EXPORTER_OTLP_PROTOCOL"
OFF_VARIABLE = "OTEL_SDK_DISABLED"

QUEUED_SPANS = 32_768
"""A token of a deep model is some thirty spans: the exporter's usual 2,048 would lose most of one answer."""

SPANS_PER_EXPORT = 512
EXPORT_INTERVAL_MS = 1000
FLUSH_MS = 3000

Value = str | int | float | bool | Sequence[str]
Kind = Literal["server", "client", "internal"]


class Tracing:
    """Starts spans and sends them in the background. Any thread may start spans; whoever starts one ends it.

    What is sampled is decided once per trace, by the caller's decision or by OTEL_TRACES_SAMPLER.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - only where tracing is on
        from opentelemetry.context import Context  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._provider = provider
        self._tracer = provider.get_tracer("expertmesh", __version__)
        self._trace = trace
        self._kinds = {
            "server": trace.SpanKind.SERVER,
            "client": trace.SpanKind.CLIENT,
            "internal": trace.SpanKind.INTERNAL,
        }
        self._propagator = TraceContextTextMapPropagator()
        self._nowhere = Context()

    def start(
        self,
        name: str,
        parent: Span | str | None,
        kind: Kind,
        attributes: Mapping[str, Value] | None = None,
        *,
        links: Iterable[Span] = (),
        start_ns: int | None = None,
    ) -> Span:
        """A span under `parent`: a span of this process, a W3C traceparent, or None or "" for a trace of its own.

        `start_ns` is in nanoseconds of the wall clock; None is now.
        """
        linked = [self._trace.Link(span.get_span_context()) for span in links]
        return self._tracer.start_span(name, self._under(parent), self._kinds[kind], attributes, linked, start_ns)

    def traceparent(self, span: Span) -> str:
        """What carries `span` to another process as its parent."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._trace.set_span_in_context(span))
        return carrier.get(TRACEPARENT, "")

    def failed(self, span: Span, text: str) -> None:
        """Mark the span as failed, saying why."""
        span.set_status(self._trace.StatusCode.ERROR, text)

    def close(self) -> None:
        """Send what is left, for a few seconds at most. Blocks."""
        self._provider.force_flush(FLUSH_MS)
        self._provider.shutdown()

    def _under(self, parent: Span | str | None) -> Context:
        if not parent or isinstance(parent, str):
            return self._propagator.extract({TRACEPARENT: parent or ""}, self._nowhere)
        return self._trace.set_span_in_context(parent)


def open_tracing(
    part: str, instance: str, environment: Mapping[str, str], endpoint: str | None = None
) -> Tracing | None:
    """Tracing of this process, if `endpoint` or the environment names a receiver; `part` is controller or worker.

    Raises:
        InvalidInput: the endpoint is no http:// or https:// address, or another protocol than gRPC is asked for.
        Precondition: the packages of the extra `tracing` are not installed.

    """
    found = endpoint or next((environment[v] for v in ENDPOINT_VARIABLES if environment.get(v)), None)
    if found is None or environment.get(OFF_VARIABLE, "").lower() == "true":
        return None
    if not found.startswith(("http://", "https://")):
        raise InvalidInput(f"the trace receiver {found!r} is not valid: write http://host:port or https://host:port")
    protocol = environment.get(PROTOCOL_VARIABLE, "grpc")
    if protocol != "grpc":
        raise InvalidInput(f"{PROTOCOL_VARIABLE} is {protocol!r}; traces are sent over grpc only")
    log.info("traces go to %s", found)
    return Tracing(_provider(part, instance, environment, found))


@contextlib.asynccontextmanager
async def tracing_while(
    part: str, instance: str, environment: Mapping[str, str], endpoint: str | None = None
) -> AsyncIterator[Tracing | None]:
    """`open_tracing` for as long as the body runs; what is left is sent at the end. Raises as `open_tracing`."""
    tracing = open_tracing(part, instance, environment, endpoint)
    try:
        yield tracing
    finally:
        if tracing is not None:
            await asyncio.to_thread(tracing.close)


def _provider(part: str, instance: str, environment: Mapping[str, str], endpoint: str) -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise Precondition("traces need more packages: pip install 'expertmesh[tracing]'") from error
    attributes = {"service.instance.id": instance, "service.version": __version__, "expertmesh.part": part}
    if "OTEL_SERVICE_NAME" not in environment:
        attributes["service.name"] = f"expertmesh-{part}"
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
    provider.add_span_processor(BatchSpanProcessor(exporter, QUEUED_SPANS, EXPORT_INTERVAL_MS, SPANS_PER_EXPORT))
    return provider
