"""Workers whose controller or stream went away, or that were killed: who comes back, and with what."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace

import grpc
import pytest

from expertmesh_common.graphs.expert import resident_bytes
from models.made_experts import SMALL
from rigs.worker_processes import assert_computes, execute

FIELDS = dataclasses.asdict(SMALL)


async def test_a_killed_worker_is_noticed_and_comes_back_as_a_new_generation(control, start_worker, experts):
    child = await start_worker()
    before = await control.next_worker()
    await before.order(control.load(0, SMALL, experts[0]))

    child.kill()
    await asyncio.wait_for(before.ended.wait(), 5)
    await start_worker()
    after = await control.next_worker()

    assert after.hello.worker_id == before.hello.worker_id
    assert after.hello.generation != before.hello.generation
    assert list(after.hello.resident) == []


async def test_a_worker_serves_on_without_its_controller_and_joins_again_with_its_experts(
    control, start_worker, experts
):
    await start_worker()
    before = await control.next_worker()
    address = before.hello.endpoints[0].address
    assert (await before.order(control.load(2, SMALL, experts[2]))).ok

    await control.stop()
    assert_computes(await execute(address, 2), seed=2)
    await control.start(control.address)
    after = await control.next_worker()

    assert after.hello.generation == before.hello.generation
    (resident,) = after.hello.resident
    assert (resident.expert.index, resident.precision, resident.digest) == (2, "fp32", experts[2].digest)
    assert resident.resident_bytes == resident_bytes(SMALL)
    assert_computes(await execute(address, 2), seed=2)


async def test_a_worker_says_what_it_holds_for_numerics_fast_so_that_nobody_takes_it_for_exact(
    control, start_worker, experts
):
    await start_worker()
    before = await control.next_worker()
    fast = dataclasses.replace(SMALL, numerics="fast")
    assert (await before.order(control.load(0, SMALL, experts[0]))).ok
    assert (await before.order(control.load(1, fast, experts[1]))).ok
    assert (await before.order(control.load(2, fast, experts[2]))).ok
    assert (await before.order(control.load(2, SMALL, experts[2]))).ok  # not done already: that one is not exact
    refused = await before.order(control.load(0, SimpleNamespace(**{**FIELDS, "numerics": "quick"}), experts[0]))
    assert "no expert template for numerics 'quick': there are exact, fast" in refused.error

    await control.stop()
    await control.start(control.address)
    found = {r.expert.index: r for r in (await control.next_worker()).hello.resident}

    assert {index: (r.digest, r.fast_digest) for index, r in found.items()} == {
        0: (experts[0].digest, ""),
        1: ("", experts[1].digest),  # a control loop that knows no numerics finds nothing that it could adopt
        2: (experts[2].digest, ""),
    }
    assert_computes(await execute(before.hello.endpoints[0].address, 1), seed=1)


async def test_a_controller_may_restart_again_and_again(control, start_worker):
    child = await start_worker()
    generations = set()

    for _ in range(8):
        worker = await control.next_worker()
        await asyncio.wait_for(worker.heartbeats.get(), 5)
        generations.add(worker.hello.generation)
        await control.stop()
        await control.start(control.address)
    await control.next_worker()

    assert child.returncode is None
    assert len(generations) == 1


async def test_a_controller_of_an_older_term_is_not_followed(control, start_worker):
    await start_worker()
    await control.next_worker()
    await control.stop()
    control.term -= 1
    await control.start(control.address)
    old = await control.next_worker()
    await asyncio.wait_for(old.ended.wait(), 5)
    control.term += 2

    worker = await control.next_worker()
    while worker.ended.is_set():  # it may have been welcomed by the old term several times
        worker = await control.next_worker()

    assert (await asyncio.wait_for(worker.heartbeats.get(), 5)).n == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.CANCELLED, grpc.StatusCode.PERMISSION_DENIED, None])
async def test_however_a_stream_ends_the_worker_joins_again(control, start_worker, code):
    await start_worker()
    before = await control.next_worker()

    before.down.put_nowait(code)
    after = await control.next_worker()

    assert after.hello.generation == before.hello.generation
