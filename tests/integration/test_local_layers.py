"""Layers whose experts the gateway holds itself, beside layers over two workers that are processes of their own."""

from __future__ import annotations

import pytest

from chaos.parts import NO_REPAIR, Parts, disturbed_in_a_row, parts, until_live
from e2e.running import until
from expertmesh import Client, FailedPrecondition, InvalidRequest
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import write_manifest
from models.small_mesh import small_mesh
from models.tiny_bundle import EXPERTS, greedy_ids, make_tiny_bundle

PROMPT = [72, 101, 108, 108, 111, 32, 119, 111, 114, 108, 100]
LONG = 400
TEXT = "the rain fell on the other stone and the snow stood in the hare's nest"
MIXED = {"middle": "0,2", "ends": "1", "last": "0-1"}
"""Of three layers; those not named here lie on workers."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def mesh(folder, tmp_path_factory):
    with parts(folder, tmp_path_factory.mktemp("l")) as mesh:
        yield mesh


def placed(client: Client, model: str) -> set[int]:
    """Layers of which every expert is on a worker, and no other is listed."""
    found = [(expert.layer, expert.index) for expert in client.experts(model=model) if expert.worker_ids]
    layers = {layer for layer, _ in found}
    assert sorted(found) == [(layer, index) for layer in sorted(layers) for index in range(EXPERTS)]
    return layers


def scores(client: Client, model: str) -> list[float]:
    return [token.logprob for token in client.score(TEXT, model=model).tokens if token.logprob is not None]


def started(mesh: Parts, client: Client, *arguments: str) -> None:
    mesh.controller(*arguments)
    mesh.worker("w1"), mesh.worker("w2")
    until_live(mesh, client, "w1", "w2")


def test_every_mix_answers_as_exact_does_and_only_its_other_layers_lie_on_workers(mesh, folder):
    with mesh.client() as client:
        started(mesh, client)
        exact, want = scores(client, "tiny"), greedy_ids(Bundle(folder), PROMPT, 24)
        shares = client.complete(prompt_ids=PROMPT, max_tokens=24, ignore_eos=True, model="tiny").active_share
        for name, layers in MIXED.items():
            served = client.serve_model(folder, name=name, numerics="fast", local_layers=layers)
            assert (served.numerics, served.local_layers) == ("fast", layers)
            client.wait_ready(model=name, deadline_s=60)
            answer = client.complete(prompt_ids=PROMPT, max_tokens=24, ignore_eos=True, model=name)
            assert ([*answer.token_ids], answer.numerics) == (want, "fast")
            assert answer.active_share == pytest.approx(shares)
            assert scores(client, name) == pytest.approx(exact, abs=1e-4)
            assert placed(client, name) == {0, 1, 2} - {int(layer) for layer in layers.replace("-", ",").split(",")}
        status = {model.name: model for model in client.served_models()}
        assert {(status[name].state, status[name].missing_bytes) for name in MIXED} == {("ready", 0)}
        until(lambda: any(expert.rows for expert in client.experts(model="middle")), 10)
        with pytest.raises(FailedPrecondition, match="numerics `fast` cannot be explained"):
            client.explain(TEXT, model="middle")
        assert client.serve_model(folder, name="every", numerics="fast", local_layers="2,0-1").local_layers == ""
        assert placed(client, "every") == set()


def test_a_worker_killed_in_mid_answer_costs_no_token(mesh, folder):
    with mesh.client(NO_REPAIR) as client:
        mesh.controller("--numerics", "fast", "--local-layers", "0,2")
        first, _ = mesh.worker("w1"), mesh.worker("w2")
        until_live(mesh, client, "w1", "w2")
        assert {expert.layer for expert in client.experts()} == {1}
        assert {node.worker_id: node.experts for node in client.nodes()} == {"w1": EXPERTS, "w2": EXPERTS}
        ids, _ = disturbed_in_a_row(client, first.kill)
        assert ids == greedy_ids(Bundle(folder), PROMPT, LONG) * 3


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"numerics": "fast", "local_layers": "0-3"}, "local_layers '0-3': tiny has layers 0 to 2, none numbered 3"),
        ({"numerics": "fast", "local_layers": "2-1"}, "local_layers '2-1': expected `all`, `none`, or ranges"),
        ({"numerics": "exact", "local_layers": "0"}, "local_layers '0': only numerics `fast`"),
        ({"local_layers": "0"}, "local_layers '0': only numerics `fast`"),
        ({"local_layers": "none"}, "local_layers 'none': only numerics `fast`"),
    ],
)
async def test_layers_that_cannot_be_held_are_refused_with_the_field_named(folder, tmp_path, asked, words):
    async with small_mesh(tmp_path, [str(folder)], workers=0, budget_bytes=1) as client:
        with pytest.raises(InvalidRequest, match=words):
            await client.serve_model(folder, name="other", **asked)


async def test_only_layers_that_are_held_need_a_fused_form(folder, tmp_path):
    bundle = Bundle(folder)
    layers = list(bundle.manifest.layers)
    layers[1] = layers[1].model_copy(update={"gate": layers[1].gate.model_copy(update={"max_k": 2})})
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "blobs").symlink_to(folder / "blobs")
    write_manifest(bundle.manifest.model_copy(update={"layers": tuple(layers)}), odd)
    async with small_mesh(tmp_path, [str(folder)], workers=0, budget_bytes=1) as client:
        with pytest.raises(InvalidRequest, match="layer 1 has no fused form"):
            await client.serve_model(odd, name="odd", numerics="fast", local_layers="0-1")
        assert (await client.serve_model(odd, name="odd", numerics="fast", local_layers="0,2")).local_layers == "0,2"
