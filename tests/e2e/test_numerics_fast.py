"""`expertmesh up --numerics fast`: whole models in the gateways' processes, with the answers of the oracle."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from e2e.running import running_up
from expertmesh import Client, ExpertmeshError, FailedPrecondition
from expertmesh_common.bundle.blobs import Bundle
from models import tiny_bundle as tiny

PROMPT = [5, 6, 7]
FAST = ["--listen", "127.0.0.1:0", "--store", "memory", "--numerics", "fast", "--workers", "0", "--http-port", "off"]


def shown(up, *arguments: str) -> str:
    command = [sys.executable, "-m", "expertmesh.cli.main", *arguments, "--server", up.address]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def assert_answers_fast(address, want):
    with Client(address) as client:
        answer = client.complete(prompt_ids=PROMPT, max_tokens=12, ignore_eos=True)
    assert ([*answer.token_ids], answer.numerics) == (want, "fast")


@pytest.mark.slow
def test_a_mesh_without_workers_answers_as_the_oracle_and_says_what_it_is(tiny_folder, folder):
    want = tiny.greedy_ids(Bundle(tiny_folder), PROMPT, 12)
    with running_up(folder, ["--model", str(tiny_folder), "--gateways", "2", *FAST]) as up:
        assert set(up.pids) == {"controller", "gateway-2"}
        for address in up.addresses:
            assert_answers_fast(address, want)
        with Client(up.address) as client:
            assert client.score("the rain fell").numerics == "fast"
            (status,) = client.served_models()
            assert (status.state, status.numerics, status.missing_bytes) == ("ready", "fast", 0)
            with pytest.raises(FailedPrecondition, match="numerics `fast` cannot be explained"):
                client.explain("the rain")
        assert "fp32 fast" in shown(up, "models", "list")
        assert json.loads(shown(up, "status", "--json"))["ready"] is True
        assert "held whole by its gateways" in shown(up, "doctor")
        assert up.stop() == 0


@pytest.mark.slow
def test_both_gateways_hold_the_local_layers_and_workers_the_others(tiny_folder, folder):
    want = tiny.greedy_ids(Bundle(tiny_folder), PROMPT, 12)
    arguments = ["--model", str(tiny_folder), "--gateways", "2", *FAST, "--local-layers", "0,2"]
    with running_up(folder, [*arguments, "--workers", "2", "--budget-share", "1"]) as up:
        for address in up.addresses:
            assert_answers_fast(address, want)
        with Client(up.address) as client:
            placed = {(e.layer, len(e.worker_ids)) for e in client.experts()}
            (status,) = client.served_models()
        assert placed == {(1, 2)}
        assert (status.state, status.local_layers, status.missing_bytes) == ("ready", "0,2", 0)
        assert "fp32 fast 0,2" in shown(up, "models", "list")
        assert "4 of 4 experts of tiny are served" in shown(up, "doctor")
        assert up.stop() == 0


@pytest.mark.slow
def test_both_gateways_may_leave_every_expert_to_workers_that_need_not_be_exact(tiny_folder, folder):
    want = tiny.greedy_ids(Bundle(tiny_folder), PROMPT, 12)
    arguments = ["--model", str(tiny_folder), "--gateways", "2", *FAST, "--local-layers", "none"]
    with running_up(folder, [*arguments, "--workers", "2", "--budget-share", "0.5"]) as up:
        for address in up.addresses:
            assert_answers_fast(address, want)
            with Client(address) as client:
                assert len(client.explain("the rain").layers) == tiny.LAYERS
        with Client(up.address) as client:
            (status,) = client.served_models()
        assert (status.state, status.local_layers, status.missing_bytes) == ("ready", "none", 0)
        assert "fp32 fast none" in shown(up, "models", "list")
        assert "12 of 12 experts of tiny are served" in shown(up, "doctor")
        assert up.stop() == 0


@pytest.mark.slow
def test_one_model_may_be_fast_and_another_lie_on_workers(tiny_folder, folder):
    arguments = ["--model", str(tiny_folder), "--listen", "127.0.0.1:0", "--store", "memory", "--http-port", "off"]
    with running_up(folder, [*arguments, "--workers", "2"]) as up, Client(up.address) as client:
        served = client.serve_model(tiny_folder, name="whole", precision="int4", numerics="fast")
        assert (served.numerics, served.state) == ("fast", "ready")
        answers = {name: client.complete(prompt_ids=PROMPT, model=name, max_tokens=6) for name in ("tiny", "whole")}
        assert [answers[name].numerics for name in ("tiny", "whole")] == ["exact", "fast"]
        assert {expert.model for expert in client.experts()} == {"tiny"}
        client.unserve_model("whole", drain_s=1)
        assert [model.name for model in client.served_models()] == ["tiny"]
        with pytest.raises(ExpertmeshError, match="numerics 'quick' does not exist"):
            client.serve_model(tiny_folder, name="odd", numerics="quick")


def test_experts_need_workers_unless_the_gateway_holds_them(tiny_folder, folder):
    command = [sys.executable, "-m", "expertmesh.cli.main", "up", "--model", str(tiny_folder), "--workers", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "--workers 0: experts need workers, unless --numerics fast" in done.stderr
