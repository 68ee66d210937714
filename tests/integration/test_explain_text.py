"""Explaining a text: what the gates are said to have decided is what a plain forward pass computes."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest

from expertmesh.inspecting import explanation
from expertmesh_api.v1 import gating_pb2, gating_pb2_grpc
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.tensors import read_tensors
from expertmesh_common.errors import Unavailable
from expertmesh_common.security import Security, dial
from models import tiny_bundle as tiny
from rigs.served_gateway import ServedGateway, asking

TEXT = "the gates decide where this text goes"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("tiny")))


def gate_scores(bundle: Bundle, ids: list[int]) -> list[np.ndarray]:
    """Scores float32 [tokens, experts] of every layer, by a plain pass that shares no code with the services."""
    trunk = [tiny._read(bundle, s.graphs["fp32"].weights, "fp32") for s in bundle.manifest.trunk.segments]
    state, scores = trunk[0]["embed"][np.asarray(ids)], []
    for tensors, layer in zip(trunk[:-1], bundle.manifest.layers, strict=True):
        state = state + tiny._attention(tensors, tiny._norm(state, tensors["attn_norm"]))
        rows = tiny._norm(state, tensors["ffn_norm"])
        gate = read_tensors(bundle.path(layer.gate.weights))
        scores.append(rows @ gate["router"] + gate["bias"])
        state = state + tiny._swiglu(rows, tensors["shared_gate_up"], tensors["shared_down"])
        state = state + tiny.routed_rows(bundle, layer, rows)
    return scores


async def explained(gateway: ServedGateway, text: str, **fields):
    async with dial(f"127.0.0.1:{gateway.port}", Security()) as channel:
        request = gating_pb2.ExplainTextRequest(text=text, **fields)
        return explanation(await gating_pb2_grpc.GatingStub(channel).ExplainText(request, timeout=30))


def columns(found, name: str) -> list[np.ndarray]:
    return [np.array([[getattr(e, name) for e in token] for token in layer.tokens]) for layer in found.layers]


@pytest.mark.parametrize("chunk", [256, 5])
async def test_scores_and_picks_are_those_of_a_plain_pass_also_over_several_chunks(bundle, chunk):
    async with ServedGateway(bundle, prefill_chunk_tokens=chunk) as gateway:
        found = await explained(gateway, TEXT)
    expected = gate_scores(bundle, list(found.token_ids))
    assert "".join(found.pieces) == TEXT
    for layer, scores in enumerate(expected):
        np.testing.assert_allclose(columns(found, "score")[layer], scores, rtol=1e-3, atol=1e-4)
        sure = np.abs(scores - tiny.THRESHOLD) > 1e-3
        assert ((columns(found, "picked")[layer] == (scores >= tiny.THRESHOLD)) | ~sure).all()


async def test_an_explanation_beside_running_answers_is_the_same(bundle):
    async with ServedGateway(bundle, slots=4, prefill_chunk_tokens=7) as gateway:
        alone = await explained(gateway, TEXT)
        answers = [gateway.one.Generate(asking(start, 200), timeout=60) for start in range(3)]
        first = [await anext(aiter(answer)) for answer in answers]
        assert all(token.HasField("token") for token in first)
        beside = await explained(gateway, TEXT)
        for answer in answers:
            answer.cancel()
    for one, other in zip(columns(alone, "score"), columns(beside, "score"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


async def test_a_step_that_failed_and_ran_again_is_told_once(bundle):
    async with ServedGateway(bundle) as gateway:
        whole = await explained(gateway, TEXT)
        gateway.plane.fail_at_layer = 2
        gateway.plane.failures = [Unavailable("gone for a moment")]
        again = await explained(gateway, TEXT)
        assert not gateway.plane.failures
    assert again == whole


async def test_one_token_is_explained_and_its_holders_are_named(bundle):
    async with ServedGateway(bundle) as gateway:
        await gateway.until(lambda: gateway.gateway.ready)
        found = await explained(gateway, "x")
    assert (len(found.token_ids), [len(layer.tokens) for layer in found.layers]) == (1, [1] * tiny.LAYERS)
    assert {e.worker_ids for layer in found.layers for e in layer.tokens[0]} == {("w1",)}


async def test_a_question_goes_through_the_chat_template(bundle):
    async with ServedGateway(bundle) as gateway:
        found = await explained(gateway, "hello", as_question=True)
    assert tiny.IM_START in found.token_ids
    assert found.token_ids[-1] != tiny.IM_END


@pytest.mark.parametrize(
    ("fields", "status", "complaint"),
    [
        ({"text": ""}, grpc.StatusCode.INVALID_ARGUMENT, "text is empty"),
        ({"text": "x" * 400}, grpc.StatusCode.INVALID_ARGUMENT, "allowed are 1 to 100"),
        ({"text": "x" * 10**6}, grpc.StatusCode.INVALID_ARGUMENT, "text"),
        ({"text": "x", "model": "other"}, grpc.StatusCode.NOT_FOUND, "other"),
    ],
)
async def test_what_cannot_be_explained_is_refused_with_the_field_named(bundle, fields, status, complaint):
    async with ServedGateway(bundle, context_tokens=100) as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await explained(gateway, **fields)
    assert (raised.value.code(), complaint in (raised.value.details() or "")) == (status, True)


async def test_a_caller_who_is_gone_gives_the_slot_back(bundle):
    async with ServedGateway(bundle, slots=1) as gateway:
        gateway.plane.delay_s = 0.05
        task = asyncio.create_task(explained(gateway, TEXT))
        await gateway.until(lambda: bool(gateway.plane.calls))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await gateway.until(lambda: gateway.gateway.engine.outstanding == 0)
