"""A stream that comes again under its id, as the SDK resumes one, through a real gRPC server and engine."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from expertmesh_common.bundle.blobs import Bundle
from models.tiny_bundle import greedy_ids, make_tiny_bundle
from rigs.openai_door import door_house
from rigs.served_gateway import ServedGateway, asking

COUNT = 150


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle(make_tiny_bundle(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
async def house(bundle):
    async with ServedGateway(bundle, slots=1, queue_limit=0, context_tokens=200) as house:
        house.plane.delay_s = 0.005
        yield house


async def ending_of(call) -> grpc.StatusCode:
    async with asyncio.timeout(20):
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code()
    return await call.code()


async def some_of(call, count):
    """The ids of the first tokens."""
    events = aiter(call)
    return [(await anext(events)).token.id for _ in range(count)]


async def test_the_older_half_of_a_resumed_stream_ends_and_its_only_slot_serves_the_newer_one(house, bundle):
    older = house.one.Generate(asking(5, COUNT, request_id="r"))
    received = await some_of(older, 3)
    house.plane.delay_s = 0

    newer = house.one.Generate(asking(5, COUNT, request_id="r", resume_token_ids=received))
    rest = [event.token.id async for event in newer if event.WhichOneof("event") == "token"]

    assert received + rest == greedy_ids(bundle, [5, 6, 7], COUNT)
    assert await ending_of(older) is grpc.StatusCode.ABORTED
    await house.until(lambda: house.gateway.engine.outstanding == 0)


async def test_a_stream_that_had_told_nothing_yet_is_superseded_too(house):
    older = house.one.Generate(asking(5, COUNT, request_id="r"))
    await house.until(lambda: house.gateway.engine.outstanding == 1)
    newer = house.one.Generate(asking(5, COUNT, request_id="r"))
    await some_of(newer, 1)
    assert await ending_of(older) is grpc.StatusCode.ABORTED
    newer.cancel()


@pytest.mark.parametrize(
    ("caller", "first_id", "request_id"),
    [("other", 5, "r"), ("one", 9, "r"), ("one", 5, "s"), ("one", 5, "")],
    ids=["another caller", "another prompt", "another id", "no id"],
)
async def test_what_is_not_the_same_request_ends_nobodys_stream(house, caller, first_id, request_id):
    older = house.one.Generate(asking(5, COUNT, request_id="r" if request_id else ""))
    await some_of(older, 3)
    newer = getattr(house, caller).Generate(asking(first_id, COUNT, request_id=request_id))
    assert await ending_of(newer) is grpc.StatusCode.RESOURCE_EXHAUSTED
    house.plane.delay_s = 0
    assert await ending_of(older) is grpc.StatusCode.OK


async def test_equal_prompts_of_one_http_request_are_answers_of_their_own(bundle):
    async with door_house(bundle) as house, house.client() as client:
        asked = {"model": "tiny", "prompt": ["a b", "a b"], "max_tokens": 40, "seed": 3}
        answer = await client.completions.create(**asked, extra_body={"ignore_eos": True})
    first, second = (choice.text for choice in answer.choices)
    assert first == second != ""
