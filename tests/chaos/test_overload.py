"""More than can be served: turns between clients, refusals that say when to come back, readers that do not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from expertmesh_api.v1 import inference_pb2 as pb
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.errors import Exhausted
from expertmesh_controller.gateway.answering import Caller
from expertmesh_controller.gateway.batching.admission import RefusalReason
from models import tiny_bundle as tiny
from rigs.served_gateway import ServedGateway, asking

SMALL = {"slots": 2, "queue_limit": 8, "context_tokens": 500, "prefill_chunk_tokens": 32}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
async def small(bundle: Bundle) -> AsyncIterator[ServedGateway]:
    async with ServedGateway(bundle, **SMALL) as served:
        yield served


async def whole(call) -> list[pb.GenerateResponse]:
    return [event async for event in call]


async def failure(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await whole(call)
    return caught.value


def retry_after_ms(error: grpc.aio.AioRpcError) -> int:
    return int(dict(error.trailing_metadata())["retry-after-ms"])


async def test_a_greedy_client_with_a_hundred_requests_does_not_starve_another(bundle: Bundle) -> None:
    order: list[str] = []

    async def first_token(name: str, call) -> None:
        await anext(aiter(call))
        order.append(name)
        await whole(call)

    async with ServedGateway(bundle, **SMALL | {"queue_limit": 256}) as served:
        served.plane.delay_s = 0.001
        greedy = [asyncio.create_task(first_token("greedy", served.one.Generate(asking(n, 8)))) for n in range(100)]
        await served.until(lambda: len(order) >= 4)
        before = len(order)
        modest = [asyncio.create_task(first_token("modest", served.other.Generate(asking(n, 8)))) for n in range(5)]
        await asyncio.gather(*greedy, *modest)

    # In turns: beside those that had a slot already, no more of the greedy client's than of the other's.
    last = max(place for place, name in enumerate(order) if name == "modest")
    assert order[before : last + 1].count("greedy") <= 5 + 2 * SMALL["slots"]
    assert len(order) == 105


async def test_a_greedy_client_cannot_fill_the_queue(small: ServedGateway) -> None:
    small.plane.delay_s = 0.003
    greedy = [small.one.Generate(asking(n, 400)) for n in range(40)]
    engine = small.gateway.engine
    await small.until(lambda: engine.refused.total() >= 30)
    assert engine.outstanding <= 2 + 8 / 2 + 1

    events = await whole(small.other.Generate(asking(9, 1), timeout=60))

    assert events[-1].finished.completion_tokens == 1
    assert engine.refused[RefusalReason.SHARE] >= 30
    for call in greedy:
        call.cancel()


async def test_a_full_queue_says_when_a_place_is_free(small: ServedGateway) -> None:
    small.plane.delay_s = 0.001
    await asyncio.gather(*(whole(small.one.Generate(asking(n, 40))) for n in range(4)))  # the pace is known now
    calls = [stub.Generate(asking(n, 400)) for n in range(12) for stub in (small.one, small.other)]
    await small.until(lambda: small.gateway.engine.outstanding >= 9)

    error = await failure(small.other.Generate(asking(1, 5)))

    service_s = small.gateway.engine.pacing.now.assumed_service_s
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details().endswith(f"try again in {retry_after_ms(error)} ms")
    assert 100 <= retry_after_ms(error) <= 2000 * service_s + 100
    for call in calls:
        call.cancel()


async def test_whoever_cannot_get_a_token_before_the_deadline_is_refused_at_once(small: ServedGateway) -> None:
    small.plane.delay_s = 0.002
    await asyncio.gather(*(whole(small.one.Generate(asking(n, 60))) for n in range(4)))
    service_s = small.gateway.engine.pacing.now.service_s
    assert service_s is not None
    running = [small.one.Generate(asking(n, 400)) for n in range(4)]
    await small.until(lambda: small.gateway.engine.outstanding == 4)

    error = await failure(small.one.Generate(asking(1, 5), timeout=service_s))

    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the first token is expected in" in error.details()
    assert retry_after_ms(error) >= 100
    assert small.gateway.engine.refused[RefusalReason.DEADLINE] == 1
    for call in running:
        call.cancel()


async def test_a_cancelled_crowd_leaves_nothing_behind(small: ServedGateway) -> None:
    small.plane.delay_s = 0.002
    calls = [stub.Generate(asking(n, 400)) for n in range(30) for stub in (small.one, small.other)]
    await small.until(lambda: small.gateway.engine.outstanding >= 8)
    for call in calls:
        call.cancel()
    engine = small.gateway.engine
    await small.until(lambda: engine.outstanding == 0)
    assert engine._readers.crowd(0).unstarted == {}
    events = await whole(small.one.Generate(asking(1, 3)))
    assert events[-1].finished.completion_tokens == 3


async def test_an_answer_that_nobody_reads_is_given_up_with_a_clear_error(bundle: Bundle) -> None:
    async with ServedGateway(bundle, **SMALL, reader_patience_s=0.2) as served:
        answer = served.gateway.inference.generate(asking(5, 400), None, Caller("idle"))
        await anext(answer)
        await served.until(lambda: not served.gateway.engine._readers._tickets)
        with pytest.raises(Exhausted, match=r"nothing of this answer was read for 0\.2 s"):
            async for _ in answer:
                pass


async def test_a_reader_that_is_merely_slow_gets_its_whole_answer(bundle: Bundle) -> None:
    async with ServedGateway(bundle, **SMALL, reader_patience_s=0.4) as served:
        answer = served.gateway.inference.generate(asking(5, 30), None, Caller("slow"))
        count = 0
        async for _ in answer:
            count += 1
            await asyncio.sleep(0.05)  # 30 tokens take far longer than the patience, but each is taken in time
        assert count == 31


async def test_unread_answers_of_one_client_do_not_shut_out_another(bundle: Bundle) -> None:
    async with ServedGateway(bundle, **SMALL, reader_patience_s=60) as served:
        inference, engine = served.gateway.inference, served.gateway.engine
        places = engine._limits.unread // 2 + 1
        idle = [inference.generate(asking(n, 3), None, Caller("idle")) for n in range(places)]
        for answer in idle:
            await anext(answer)
            await served.until(lambda: engine.outstanding == 0)
        with pytest.raises(Exhausted, match="answers are complete and not read"):
            await anext(inference.generate(asking(1, 3), None, Caller("idle")))
        assert engine.refused[RefusalReason.UNREAD] == 1
        events = await whole(served.other.Generate(asking(9, 2)))
        assert events[-1].finished.completion_tokens == 2
        for answer in idle:
            await answer.aclose()
        assert not engine._readers.crowd(0).unread
