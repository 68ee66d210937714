"""What a model held is free when it goes, whichever doors its requests came through."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from openai import AsyncOpenAI, BadRequestError

from expertmesh import AsyncClient, InvalidRequest, NotFound, Unavailable
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_controller.gateway.batching.engine import Engine
from expertmesh_controller.gateway.dispatch.links.pool import LinkPool
from expertmesh_controller.gateway.dispatch.plane import ExpertPlane
from expertmesh_controller.gateway.gateway import Gateway
from expertmesh_controller.gateway.text.codec import TextCodec
from expertmesh_controller.gateway.trunk.local import LocalTrunk
from models.small_mesh import small_mesh
from models.tiny_bundle import HIDDEN, make_tiny_bundle
from rigs.openai_door import door_house

PROMPT = [5, 6, 7]
OF_A_MODEL = (Gateway, Engine, ExpertPlane, LinkPool, LocalTrunk, TextCodec)


@dataclass
class Mesh:
    """A mesh that serves model one, and both its doors."""

    client: AsyncClient
    openai: AsyncOpenAI


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {name: make_tiny_bundle(root / name, seed) for seed, name in enumerate(("one", "two"))}


@pytest.fixture
async def mesh(folders, tmp_path_factory, caplog) -> AsyncIterator[Mesh]:
    budget_bytes = 2 * Bundle(folders["one"]).manifest.expert_bytes("fp32")
    arguments = [f"one={folders['one']}"]
    caplog.set_level("INFO", "expertmesh_controller.http_door")
    folder = tmp_path_factory.mktemp("m")
    async with small_mesh(folder, arguments, budget_bytes=budget_bytes, http_listen="127.0.0.1:0") as client:
        port = re.search(r"OpenAI API on \S+ port=(\d+)", caplog.text)
        assert port is not None, caplog.text
        url = f"http://127.0.0.1:{port[1]}/v1"
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=30) as openai:
            yield Mesh(client, openai)


def living() -> weakref.WeakSet[object]:
    """Everything of any model that is in memory. Asking objects themselves would make some of torch's warn."""
    gc.collect()
    return weakref.WeakSet(found for found in gc.get_objects() if issubclass(type(found), OF_A_MODEL))


async def over_grpc(client: AsyncClient) -> None:
    """Answered, scored, explained, refused, and left in the middle."""
    await client.complete(prompt_ids=PROMPT, max_tokens=4, model="two", logprobs=2)
    await client.score("some text", model="two")
    await client.explain("some text", model="two")
    await client.explain_rows(np.ones((2, HIDDEN), np.float32), layer=0, model="two")
    with pytest.raises(InvalidRequest):
        await client.complete(prompt_ids=PROMPT, max_tokens=10**6, model="two")
    async for _ in client.generate(prompt_ids=PROMPT, max_tokens=300, ignore_eos=True, model="two"):
        break


async def over_http(openai: AsyncOpenAI) -> None:
    """Whole, several at once, streamed, refused, and left in the middle."""
    await openai.completions.create(model="two", prompt=PROMPT, max_tokens=4, n=2, echo=True, logprobs=2)
    messages = [{"role": "user", "content": "hi"}]
    async for _ in await openai.chat.completions.create(model="two", messages=messages, max_tokens=4, stream=True):
        pass
    with pytest.raises(BadRequestError):
        await openai.completions.create(model="two", prompt=PROMPT, max_tokens=10**6)
    async with await openai.completions.create(model="two", prompt=PROMPT, max_tokens=300, stream=True) as stream:
        await anext(aiter(stream))


async def test_nothing_of_a_model_is_left_when_it_goes_after_requests_through_every_door(mesh, folders):
    before = living()
    await mesh.client.serve_model(folders["two"], name="two")
    await mesh.client.wait_ready(model="two", deadline_s=20)
    of_two = living() - before
    assert {type(found) for found in of_two} == set(OF_A_MODEL)

    await over_grpc(mesh.client)
    await over_http(mesh.openai)
    assert await mesh.client.unserve_model("two") == 0

    gc.collect()
    assert list(of_two) == []
    assert set(before) <= set(living())


async def test_nothing_of_a_model_is_left_when_a_running_answer_was_cut(mesh, folders):
    before = living()
    await mesh.client.serve_model(folders["two"], name="two")
    await mesh.client.wait_ready(model="two", deadline_s=20)
    of_two = living() - before
    running = aiter(mesh.client.generate(prompt_ids=PROMPT, max_tokens=300, ignore_eos=True, model="two"))
    await anext(running)

    assert await mesh.client.unserve_model("two", drain_s=0) == 1

    with pytest.raises((Unavailable, NotFound)):
        async for _ in running:
            pass
    gc.collect()
    assert list(of_two) == []


async def test_a_door_that_was_closed_holds_nothing_that_it_answered_from(folders):
    async with door_house(Bundle(folders["one"])) as house, house.client() as client:
        await client.completions.create(model="tiny", prompt=PROMPT, max_tokens=4)
        behind = weakref.WeakSet((house.plane, house.gateway, house.models))
    del house, client
    gc.collect()
    assert list(behind) == []
