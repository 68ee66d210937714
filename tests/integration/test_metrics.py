"""Metrics and probes of a whole mesh of real processes: names are promised, figures are those of what happened."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from e2e.running import RunningUp, running_up, until
from expertmesh import Client, NotFound
from models.tiny_bundle import make_tiny_bundle
from rigs.status_pages import families, metrics, page, probe, status_address, total

GOLDEN = Path(__file__).parents[1] / "golden" / "metric_names.txt"
HEAD = """\
# Metric families by process: name, type, labels. Renaming one breaks somebody's dashboard.
# UPDATE_GOLDEN=1 .venv/bin/python -m pytest tests/integration/test_metrics.py -k promised
"""
PROMPT = [72, 101, 108, 108, 111]
COUNT = 12
TOKEN = "operators-secret"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """A controller and two workers that have answered one request; every worker holds everything."""
    bundle = make_tiny_bundle(tmp_path_factory.mktemp("tiny"))
    arguments = ["--model", str(bundle), "--listen", "127.0.0.1:0", "--workers", "2", "--store", "memory"]
    arguments += ["--budget-share", "1.0", "--token", TOKEN]
    with running_up(tmp_path_factory.mktemp("m"), arguments) as up:
        with Client(up.address, token=TOKEN) as client:
            answer = client.complete(prompt_ids=PROMPT, max_tokens=COUNT, ignore_eos=True, request_id="the-one")
            assert len(answer.token_ids) == COUNT
        yield up


def log_of(up: RunningUp, name: str) -> Path:
    return up.output.parent / "logs" / f"{name}.log"


def addresses(up: RunningUp) -> dict[str, str]:
    return {name: status_address(log_of(up, name)) for name in up.pids}


def test_the_names_and_labels_are_those_that_were_promised(mesh):
    found = addresses(mesh)
    of_worker = families(found["worker-1"])
    shown = {"controller": families(found["controller"]), "worker": of_worker | families(found["worker-2"])}
    text = HEAD + "".join(f"{part} {line}\n" for part, lines in shown.items() for line in sorted(lines))
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_every_metric_is_in_the_guide():
    guide = (GOLDEN.parents[2] / "docs" / "guides" / "observability.md").read_text()
    names = {line.split()[1] for line in GOLDEN.read_text().splitlines() if not line.startswith("#")}
    assert {name for name in names if name.removeprefix("expertmesh_") not in guide} == set()


def test_requests_and_tokens_are_counted_as_they_were_sent(mesh):
    found = metrics(addresses(mesh)["controller"])
    assert total(found, "expertmesh_requests_total", model="tiny", call="generate", outcome="ok") >= 1
    assert total(found, "expertmesh_tokens_total", kind="prompt") >= len(PROMPT)
    assert total(found, "expertmesh_tokens_total", kind="completion") >= COUNT
    ended = total(found, "expertmesh_requests_total", outcome="ok")
    assert total(found, "expertmesh_time_to_first_token_seconds_count") == ended
    assert total(found, "expertmesh_slots_used") == 0
    assert total(found, "expertmesh_model_ready", model="tiny") == 1


def test_what_the_gateway_sent_is_what_the_workers_computed_and_what_went_over_the_links(mesh):
    found = addresses(mesh)
    gateway, workers = metrics(found["controller"]), [metrics(found[name]) for name in ("worker-1", "worker-2")]
    sent = total(gateway, "expertmesh_expert_rows_total")
    assert sent > 0
    assert sum(total(w, "expertmesh_worker_rows_total") for w in workers) == sent
    assert sum(total(w, "expertmesh_instance_rows_total") for w in workers) == sent
    frames = total(gateway, "expertmesh_link_frames_total")
    assert sum(total(w, "expertmesh_worker_frames_total") for w in workers) == frames > 0
    assert total(gateway, "expertmesh_link_sent_bytes_total") > total(gateway, "expertmesh_link_received_bytes_total")
    assert sum(total(w, "expertmesh_instance_compute_seconds_total") for w in workers) > 0


def test_experts_are_covered_and_their_bytes_are_where_they_were_fetched(mesh):
    found = addresses(mesh)
    control, worker = metrics(found["controller"]), metrics(found["worker-1"])
    assert total(control, "expertmesh_uncovered_experts", model="tiny") == 0
    assert total(control, "expertmesh_expert_replicas") == 2 * total(control, "expertmesh_experts") > 0
    assert total(control, "expertmesh_members", state="live") == 2
    assert total(control, "expertmesh_leading") == total(control, "expertmesh_store_up") == 1
    loaded = total(worker, "expertmesh_instance_resident_bytes", tier="hot")
    assert 0 < loaded == total(worker, "expertmesh_worker_resident_bytes")
    assert loaded <= total(worker, "expertmesh_worker_budget_bytes")
    assert total(worker, "expertmesh_expert_tier", tier="hot") == total(control, "expertmesh_experts")
    assert total(worker, "expertmesh_expert_queue_rows") == total(worker, "expertmesh_worker_queued_frames") == 0
    assert total(worker, "expertmesh_worker_loads_total") == total(control, "expertmesh_experts")
    fetched = sum(total(metrics(found[n]), "expertmesh_worker_fetched_bytes_total") for n in ("worker-1", "worker-2"))
    assert fetched > 0


def test_a_request_that_is_refused_is_counted_by_the_status_that_the_caller_got(mesh):
    address = addresses(mesh)["controller"]
    with Client(mesh.address, token=TOKEN) as client, pytest.raises(Exception, match="not served here"):
        client.complete(prompt_ids=PROMPT, max_tokens=1, model="no-such-model-of-a-hostile-caller")
    _, text = page(address, "/metrics")
    assert "hostile" not in text
    assert total(metrics(address), "expertmesh_requests_total", model="", outcome="not_found") == 1


def test_texts_that_are_scored_explained_or_only_tokenised_are_counted_like_answers(mesh):
    address = addresses(mesh)["controller"]
    calls = ("score", "explain", "tokenize")

    def counted(outcome: str) -> list[float]:
        found = metrics(address)
        return [total(found, "expertmesh_requests_total", call=call, outcome=outcome) for call in calls]

    before, refused_before = counted("ok"), counted("not_found")
    with Client(mesh.address, token=TOKEN) as client:
        for model in ("", "not-served"):
            wrong = contextlib.nullcontext() if not model else pytest.raises(NotFound)
            for ask in (client.score, client.explain, client.tokenize):
                with wrong:
                    ask("Hello", model=model)
    assert counted("ok") == [count + 1 for count in before]
    assert counted("not_found") == [count + 1 for count in refused_before]


def test_lines_of_a_request_carry_its_id_and_no_log_holds_prompts_or_tokens(mesh):
    lines = log_of(mesh, "controller").read_text().splitlines()
    (line,) = (line for line in lines if "request_id=the-one" in line)
    assert "generate ok model=tiny caller=" in line
    assert f"prompt_tokens={len(PROMPT)} completion_tokens={COUNT}" in line
    with Client(mesh.address, token=TOKEN) as client:
        client.complete("swordfish", max_tokens=2)
    for name in mesh.pids:
        text = log_of(mesh, name).read_text()
        assert TOKEN not in text
        assert "swordfish" not in text


def test_every_process_lives_and_is_ready_and_grpc_health_says_the_same(mesh):
    for name, address in addresses(mesh).items():
        assert probe(address, "/livez")[0] == 200, name
        assert probe(address, "/readyz")[0] == 200, name
    serving = health_pb2.HealthCheckResponse.SERVING  # told every second, where pages are made when asked for
    for service in ("", "expertmesh_api.v1.Inference", "expertmesh_api.v1.Membership"):
        until(lambda service=service: health(mesh.address, service) == serving, 5)
    for service in ("", "expertmesh_api.v1.Experts", "expertmesh_api.v1.Blobs"):
        until(lambda service=service: health(worker_address(mesh, "worker-1"), service) == serving, 5)


def test_the_controller_tells_its_services_by_reflection(mesh):
    assert {"expertmesh_api.v1.Inference", "expertmesh_api.v1.Operations"} <= reflected(mesh.address)


def health(address: str, service: str) -> int:
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status


def reflected(address: str) -> set[str]:
    with grpc.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="*")])
        answers = stub.ServerReflectionInfo(asked, timeout=5, metadata=(("authorization", f"Bearer {TOKEN}"),))
        return {service.name for service in next(answers).list_services_response.service}


def worker_address(up: RunningUp, name: str) -> str:
    with Client(up.address, token=TOKEN) as client:
        node = next(node for node in client.nodes() if node.worker_id == name)
    return next(e.removeprefix("grpc:") for e in node.endpoints if e.startswith("grpc:"))


def test_a_mesh_without_its_workers_lives_but_is_not_ready_and_says_why(tmp_path_factory):
    bundle = make_tiny_bundle(tmp_path_factory.mktemp("tiny"))
    arguments = ["--model", str(bundle), "--listen", "127.0.0.1:0", "--workers", "1", "--store", "memory"]
    with running_up(tmp_path_factory.mktemp("m"), [*arguments, "--budget-share", "1.0"]) as up:
        address = status_address(log_of(up, "controller"))
        os.kill(up.pids["worker-1"], signal.SIGSTOP)
        try:
            until(lambda: probe(address, "/readyz")[0] == 503, 15)
            _, checks = probe(address, "/readyz")
            assert "experts of model tiny have no live instance" in checks["experts"]["reason"]
            assert checks["store"]["ok"]
            until(lambda: health(up.address, "") == health_pb2.HealthCheckResponse.NOT_SERVING, 5)
            assert health(up.address, "expertmesh_api.v1.Inference") == health_pb2.HealthCheckResponse.NOT_SERVING
            assert health(up.address, "expertmesh_api.v1.Membership") == health_pb2.HealthCheckResponse.SERVING
            assert probe(address, "/livez")[0] == 200
            assert total(metrics(address), "expertmesh_uncovered_experts") > 0
        finally:
            os.kill(up.pids["worker-1"], signal.SIGCONT)
        until(lambda: probe(address, "/readyz")[0] == 200, 30)


def test_a_worker_tells_its_services_and_without_its_controller_it_lives_but_is_not_ready(tmp_path_factory):
    bundle = make_tiny_bundle(tmp_path_factory.mktemp("tiny"))
    arguments = ["--model", str(bundle), "--listen", "127.0.0.1:0", "--workers", "1", "--store", "memory"]
    with running_up(tmp_path_factory.mktemp("m"), [*arguments, "--budget-share", "1.0"]) as up:
        address = status_address(log_of(up, "worker-1"))
        assert {"expertmesh_api.v1.Experts", "expertmesh_api.v1.Blobs"} <= reflected(worker_address(up, "worker-1"))
        os.kill(up.pids["controller"], signal.SIGKILL)
        until(lambda: probe(address, "/readyz")[0] == 503, 15)
        assert probe(address, "/livez")[0] == 200
        until(lambda: probe(address, "/readyz")[0] == 200, 30)
        assert "ready=False not joined to" in log_of(up, "worker-1").read_text()
