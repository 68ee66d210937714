"""A controller beside whose models on workers one is held whole by its gateway: nobody is disturbed by the other."""

from __future__ import annotations

import asyncio

import pytest

from expertmesh import FailedPrecondition, NotFound
from expertmesh_common.bundle.blobs import Bundle
from models import tiny_bundle as tiny
from models.small_mesh import small_mesh

PROMPT = [5, 6, 7]


@pytest.fixture
async def mesh(tmp_path):
    folder = tiny.make_tiny_bundle(tmp_path / "tiny")
    async with small_mesh(tmp_path, [str(folder)], workers=0, budget_bytes=1, numerics="fast") as client:
        yield client, Bundle(folder)


async def test_a_whole_model_is_ready_by_its_name_and_has_no_experts_on_workers(mesh):
    client, _ = mesh
    assert (await client.wait_ready(model="tiny", deadline_s=5)).missing_bytes == 0
    assert await client.experts(model="tiny") == ()
    with pytest.raises(NotFound, match="served: tiny"):
        await client.wait_ready(model="other", deadline_s=5)


async def test_asking_why_leaves_the_answers_under_way_alone(mesh):
    client, bundle = mesh
    stream = client.generate(prompt_ids=PROMPT, max_tokens=400, ignore_eos=True)
    ids = [(await anext(stream)).id]
    for _ in range(3):
        with pytest.raises(FailedPrecondition, match="numerics `fast` cannot be explained"):
            await client.explain("the rain")
        ids.append((await anext(stream)).id)
    async with asyncio.timeout(30):
        ids += [token.id async for token in stream]
    assert (len(ids), ids[:40]) == (400, tiny.greedy_ids(bundle, PROMPT, 40))
