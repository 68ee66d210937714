"""Traces of a mesh of real processes, as a real OTLP receiver gets them."""

from __future__ import annotations

import subprocess
import sys
import threading

import grpc
import pytest

from e2e.running import running_up, until
from expertmesh import Client
from expertmesh_api.v1 import inference_pb2, inference_pb2_grpc
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.errors import InvalidInput
from expertmesh_common.observability.tracing import open_tracing
from models.tiny_bundle import greedy_ids, make_tiny_bundle
from rigs.trace_receiver import Receiver, receiving

PROMPT = [72, 101, 108, 108, 111]
COUNT = 6
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=["unix", "grpc"])
def traced(request, tiny, tmp_path_factory):
    """A mesh of two workers that sends its spans to a receiver."""
    with receiving() as receiver, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        arguments = ["--model", str(tiny), "--listen", "127.0.0.1:0", "--workers", "2", "--store", "memory"]
        arguments += ["--transport", request.param, "--budget-share", "0.5"]
        with running_up(tmp_path_factory.mktemp("m"), arguments) as up:
            yield up, receiver


def ask(address: str, traceparent: str = "", request_id: str = "") -> list[int]:
    request = inference_pb2.GenerateRequest(max_tokens=COUNT, request_id=request_id)
    request.prompt_ids.ids.extend(PROMPT)
    request.sampling.ignore_eos = True
    metadata = (("traceparent", traceparent),) if traceparent else ()
    with grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        answers = list(stub.Generate(request, timeout=30, metadata=metadata))
    return [answer.token.id for answer in answers if answer.WhichOneof("event") == "token"]


def in_trace(receiver: Receiver, trace_id: str, name: str) -> list:
    return [span for span in receiver.named(name) if span.trace_id == trace_id]


def test_a_request_in_its_callers_trace_has_every_step_layer_and_frame_below_it(tiny, traced):
    up, receiver = traced
    assert ask(up.address, TRACEPARENT, "traced") == greedy_ids(Bundle(tiny), PROMPT, COUNT)
    until(lambda: in_trace(receiver, TRACE, "expertmesh.generate"), 15)
    (root,) = in_trace(receiver, TRACE, "expertmesh.generate")
    assert root.parent_id == PARENT
    assert root.part == "controller"
    assert root.attributes["expertmesh.request_id"] == "traced"
    assert root.attributes["expertmesh.model"] == "tiny"
    assert root.attributes["expertmesh.prompt_tokens"] == len(PROMPT)
    assert root.attributes["expertmesh.completion_tokens"] == COUNT

    layers = len(Bundle(tiny).manifest.layers)
    steps = in_trace(receiver, TRACE, "expertmesh.step")
    assert len(steps) >= COUNT  # one reads the prompt in and gives the first token
    assert {step.parent_id for step in steps} == {root.span_id}
    assert [s.attributes["expertmesh.rows"] for s in sorted(steps, key=lambda s: s.start_ns)][:2] == [len(PROMPT), 1]

    dispatches = in_trace(receiver, TRACE, "expertmesh.dispatch")
    assert len(dispatches) == layers * len(steps)
    assert {d.parent_id for d in dispatches} == {s.span_id for s in steps}
    assert {d.attributes["expertmesh.layer"] for d in dispatches} == set(range(layers))
    assert {w for d in dispatches for w in d.attributes["expertmesh.workers"]} == {"worker-1", "worker-2"}
    assert all(d.attributes["expertmesh.bytes_sent"] > 0 for d in dispatches if d.attributes["expertmesh.workers"])

    frames = sum(d.attributes["expertmesh.frames"] for d in dispatches)
    until(lambda: len(in_trace(receiver, TRACE, "expertmesh.execute")) == frames, 15)
    executed = in_trace(receiver, TRACE, "expertmesh.execute")
    assert {e.part for e in executed} == {"worker"}
    assert {e.parent_id for e in executed} <= {d.span_id for d in dispatches}
    spans = {d.span_id: d for d in dispatches}
    for e in executed:
        assert e.attributes["expertmesh.worker"] in spans[e.parent_id].attributes["expertmesh.workers"]
        assert spans[e.parent_id].start_ns <= e.start_ns <= e.end_ns <= spans[e.parent_id].end_ns


def test_a_step_that_serves_several_requests_is_recorded_once_and_linked_to_all(traced):
    up, receiver = traced
    askers = [threading.Thread(target=ask, args=(up.address, "", f"together-{n}")) for n in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()

    def roots() -> dict:
        found = receiver.named("expertmesh.generate")
        return {s.span_id: s for s in found if s.attributes["expertmesh.request_id"].startswith("together-")}

    until(lambda: len(roots()) == 4, 15)
    shared = [s for s in receiver.named("expertmesh.step") if s.links and s.parent_id in roots()]
    assert shared, "no two of four requests at once met in a step"
    for step in shared:
        assert step.attributes["expertmesh.requests"] == 1 + len(step.links)
        assert {*step.links} <= roots().keys() - {step.parent_id}


def test_a_caller_that_does_not_sample_is_not_traced(traced):
    up, receiver = traced
    unsampled = "11111111111111111111111111111111"
    ask(up.address, f"00-{unsampled}-{PARENT}-00")
    ask(up.address, TRACEPARENT.replace(TRACE, "2" * 32))
    until(lambda: in_trace(receiver, "2" * 32, "expertmesh.generate"), 15)
    assert [span for span in receiver.spans if span.trace_id == unsampled] == []


def test_a_request_that_fails_says_so_in_its_span(traced):
    up, receiver = traced
    with Client(up.address) as client, pytest.raises(Exception, match="not served here"):
        client.complete(prompt_ids=PROMPT, max_tokens=1, model="nobody", request_id="refused")
    found: list = []

    def arrived() -> bool:
        named = receiver.named("expertmesh.generate")
        found[:] = [s for s in named if s.attributes["expertmesh.request_id"] == "refused"]
        return bool(found)

    until(arrived, 15)
    assert found[0].failed == "not_found"


def test_the_sdk_hands_on_the_span_that_its_caller_is_in(traced):
    from opentelemetry.sdk.trace import TracerProvider

    up, receiver = traced
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("app")
    with Client(up.address) as client, tracer.start_as_current_span("app") as span:
        client.complete(prompt_ids=PROMPT, max_tokens=1, ignore_eos=True)
    context = span.get_span_context()
    trace_id = f"{context.trace_id:032x}"
    until(lambda: in_trace(receiver, trace_id, "expertmesh.generate"), 15)
    assert in_trace(receiver, trace_id, "expertmesh.generate")[0].parent_id == f"{context.span_id:016x}"


def test_without_a_receiver_nothing_of_opentelemetry_is_imported():
    program = """
import sys
import expertmesh_controller.process, expertmesh_controller.gateway_process, expertmesh_worker.process
from expertmesh_common.observability.tracing import open_tracing
assert open_tracing("worker", "w", {}) is None
print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("environment", "endpoint", "words"),
    [
        ({}, "collector:4317", "write http://host:port"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector"}, None, "'collector'"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "http://collector:4318", "grpc only"),
    ],
)
def test_a_receiver_that_cannot_work_is_refused_with_what_to_write(environment, endpoint, words):
    with pytest.raises(InvalidInput, match=words):
        open_tracing("worker", "w", environment, endpoint)


def test_tracing_can_be_disabled_by_opentelemetrys_own_switch():
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_SDK_DISABLED": "true"}
    assert open_tracing("worker", "w", environment) is None
