"""A real OTLP receiver: the collector's TraceService over gRPC, keeping every span."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class Received:
    """A span as it arrived; `part` is the process that sent it. Ids are hexadecimal, "" for no parent."""

    part: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    links: tuple[str, ...]
    failed: str
    start_ns: int
    end_ns: int


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Received] = []
        self.endpoint = ""

    @property
    def spans(self) -> list[Received]:
        with self._lock:
            return list(self._spans)

    def named(self, name: str) -> list[Received]:
        return [span for span in self.spans if span.name == name]

    def Export(self, request, context):
        with self._lock:
            for of_resource in request.resource_spans:
                part = _values(of_resource.resource.attributes)["expertmesh.part"]
                for of_scope in of_resource.scope_spans:
                    self._spans.extend(_received(part, span) for span in of_scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


def _received(part, span) -> Received:
    failed = span.status.message if span.status.code == 2 else ""
    links = tuple(link.span_id.hex() for link in span.links)
    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    times = (span.start_time_unix_nano, span.end_time_unix_nano)
    return Received(part, span.name, *ids, _values(span.attributes), links, failed, *times)


def _values(attributes) -> dict[str, Any]:
    return {a.key: _value(a.value) for a in attributes}


def _value(value) -> Any:
    kind = value.WhichOneof("value")
    return [_value(v) for v in value.array_value.values] if kind == "array_value" else getattr(value, kind)


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    receiver.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(0).wait()
