"""Numerics `fast` with every expert on worker processes: a model whose gates have no fused form, in blocks of 128."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from chaos.parts import Part, Parts, parts, until_live
from expertmesh import Client, InvalidRequest
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.tensors import read_views
from expertmesh_common.graphs.expert import ExpertShape, expert_graph
from expertmesh_controller.local.reaching import free_port
from expertmesh_forge.importing.importer import ImportRequest, import_checkpoint
from models import hf_checkpoints as hf

PROMPT = [72, 101, 108, 108, 111, 32, 119, 111, 114, 108, 100]
TEXT = "the rain fell on the other stone and the snow stood in the hare's nest"
SERVED = {"precision": "int4", "numerics": "fast", "local_layers": "none"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Groups of experts, which no graph of several layers can pick from, and a dense layer in front."""
    root = tmp_path_factory.mktemp("grouped")
    sizes = {"hidden_size": 128, "moe_intermediate_size": 128, "intermediate_size": 128, "num_hidden_layers": 3}
    checkpoint = hf.make_checkpoint(root / "checkpoint", "deepseek_v3", **sizes)
    import_checkpoint(ImportRequest(checkpoint, root / "bundle", ("fp32", "int4"), name="grouped"))
    return root / "bundle"


@pytest.fixture
def mesh(folder, tmp_path_factory):
    with parts(folder, tmp_path_factory.mktemp("w")) as mesh:
        yield mesh


def experts_of(folder: Path) -> int:
    return sum(len(layer.experts) for layer in Bundle(folder).manifest.layers)


def loads(workers: list[Part], how: str) -> int:
    return sum(len(re.findall(rf"\bload \S+ at {how} done", part.said)) for part in workers)


def scores(client: Client, model: str) -> np.ndarray:
    return np.array([t.logprob for t in client.score(TEXT, model=model).tokens if t.logprob is not None])


def fingerprint(url: str, model: str) -> str:
    body = {"model": model, "prompt": "Hello", "max_tokens": 2}
    request = urllib.request.Request(
        f"http://{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["system_fingerprint"]


def test_the_experts_of_this_model_have_a_row_more_where_they_are_exact(folder):
    bundle = Bundle(folder)
    expert = bundle.manifest.layers[-1].experts[0]
    path = bundle.path(expert.blobs["int4"])
    graphs = [
        expert_graph(ExpertShape(128, expert.width, "int4", numerics=how), read_views(path), path.name)
        for how in ("exact", "fast")
    ]
    assert len(graphs[0]) > len(graphs[1])


def test_every_expert_is_on_workers_and_answers_say_that_they_are_fast(mesh: Parts, folder):
    door = f"127.0.0.1:{free_port('127.0.0.1')}"
    with mesh.client() as client:
        mesh.controller("--precision", "int4", "--http-listen", door)
        workers = [mesh.worker("w1", budget="64MB"), mesh.worker("w2", budget="64MB")]
        until_live(mesh, client, "w1", "w2")
        with pytest.raises(InvalidRequest, match="has no fused form"):
            client.serve_model(folder, name="quick", precision="int4", numerics="fast")

        served = client.serve_model(folder, name="quick", **SERVED)
        client.wait_ready(model="quick", deadline_s=60)

        assert (served.numerics, served.local_layers) == ("fast", "none")
        assert loads(workers, "int4/fast") >= experts_of(folder)
        answer = client.complete(prompt_ids=PROMPT, max_tokens=24, ignore_eos=True, model="quick", deadline_s=30)
        assert (len(answer.token_ids), answer.numerics, answer.precision) == (24, "fast", "int4")
        assert client.score(TEXT, model="quick").numerics == "fast"
        assert fingerprint(door, "quick").endswith("_int4_fast")
        apart = np.abs(scores(client, "quick") - scores(client, "grouped"))
        assert np.median(apart) < 0.05
        exact, fast = (client.explain(TEXT, model=model) for model in ("grouped", "quick"))
        assert [len(layer.tokens) for layer in fast.layers] == [len(fast.token_ids)] * 3
        assert [layer.rule for layer in fast.layers] == [layer.rule for layer in exact.layers]
        status = {model.name: model for model in client.served_models()}["quick"]
        assert (status.state, status.missing_bytes, status.instances >= experts_of(folder)) == ("ready", 0, True)


def test_a_model_that_comes_back_exact_is_loaded_anew_by_the_workers_that_held_it_fast(mesh: Parts, folder):
    with mesh.client() as client:
        controller = mesh.controller(*(f"--{k.replace('_', '-')}={v}" for k, v in SERVED.items()))
        workers = [mesh.worker("w1", budget="64MB")]
        until_live(mesh, client, "w1")
        assert client.complete(prompt_ids=PROMPT, max_tokens=8, deadline_s=30).numerics == "fast"
        before = (loads(workers, "int4/fast"), loads(workers, "int4"))

        controller.kill()
        mesh.controller("--precision", "int4")
        until_live(mesh, client, "w1")

        assert client.complete(prompt_ids=PROMPT, max_tokens=8, deadline_s=30).numerics == "exact"
        count = experts_of(folder)
        assert before == (count, 0)
        assert workers[0].orders_done("unload") == count
        assert (loads(workers, "int4/fast"), loads(workers, "int4")) == (count, count)
