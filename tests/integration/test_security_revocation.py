"""How given-out tokens and passes end on real servers: revoked, over, or left behind by a controller."""

from __future__ import annotations

import asyncio
import contextlib
import time

import grpc

from expertmesh_api.v1 import access_pb2
from expertmesh_common.access.tokens import new_token
from expertmesh_common.clock import SystemClock
from expertmesh_common.security import Security
from rigs.access_servers import (
    BreakableStore,
    end_of,
    first,
    following,
    refusal,
    running,
    stream,
    watch_once,
)

REVOKED_WITHIN_S = 3.0  # promised: 1 s


async def test_revoking_a_token_ends_its_running_streams_on_every_server_and_nobody_elses():
    async with running() as controller:
        token, other = await controller.create("worker-a", "join"), await controller.create("worker-b", "join")
        async with (
            following(controller, other) as (elsewhere, _),
            stream(controller.address, Security(token=token)) as here,
            stream(elsewhere, Security(token=token)) as there,
            stream(elsewhere, Security(token=other)) as innocent,
        ):
            for call in (here, there, innocent):
                assert (await call.read()).data.startswith(b"worker-")
            await controller.revoke(token)

            for call in (here, there):
                code, words, took_s = await end_of(call)
                assert code is grpc.StatusCode.UNAUTHENTICATED
                assert "revoked" in words
                assert took_s < REVOKED_WITHIN_S
            assert (await innocent.read()).data == b"worker-b"
            for address in (controller.address, elsewhere):
                code, _ = await refusal(first(address, Security(token=token)))
                assert code is grpc.StatusCode.UNAUTHENTICATED


async def test_another_controller_on_the_same_store_knows_a_revocation_within_a_second():
    store = BreakableStore(SystemClock())
    async with running(store) as leader, running(store) as second:
        second.access.lease = lambda: None
        token = await leader.create("ci", "join")
        deadline = time.monotonic() + REVOKED_WITHIN_S
        while time.monotonic() < deadline:
            with contextlib.suppress(grpc.aio.AioRpcError):
                assert await first(second.address, Security(token=token)) == "ci"
                break
            await asyncio.sleep(0.05)
        async with stream(second.address, Security(token=token)) as call:
            await call.read()
            await leader.revoke(token)
            code, _, took_s = await end_of(call)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert took_s < REVOKED_WITHIN_S


async def test_a_token_ends_by_itself_when_its_time_is_over():
    async with running() as controller:
        token = await controller.create("brief", "join", ttl_ms=500)
        async with stream(controller.address, Security(token=token)) as call:
            await call.read()
            code, _, took_s = await end_of(call)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert took_s < 0.5 + REVOKED_WITHIN_S
        listed = (await controller.ask("ListTokens", access_pb2.ListTokensRequest())).tokens
        assert [(t.name, t.state) for t in listed] == [("brief", "expired")]


async def test_parts_show_each_other_passes_and_never_a_token():
    join = new_token()
    async with running(join_token=join) as controller:
        ours = controller.access.towards_parts
        async with following(controller, join) as (worker, peers):
            for security in (ours, peers):
                presented = dict(security.metadata())["authorization"]
                assert join not in presented
                assert controller.own not in presented
            assert await first(worker, ours) == "controller"
            assert await first(worker, peers) == "join"
            # A part that was called knows the caller's pass: with it, nobody joins.
            stolen = peers.presented
            code, words = await refusal(watch_once(controller.address, stolen))
            assert (code, "needs join" in words) == (grpc.StatusCode.PERMISSION_DENIED, True)


async def test_revoking_a_join_token_makes_the_passes_that_its_holder_saw_worthless():
    async with running() as controller:
        bad, good = await controller.create("bad", "join"), await controller.create("good", "join")
        async with following(controller, good) as (worker, peers):
            stolen = peers.presented
            assert await first(worker, Security(token=stolen)) == "good"
            await controller.revoke(bad)
            deadline = time.monotonic() + REVOKED_WITHIN_S
            while peers.presented == stolen:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            code, _ = await refusal(first(worker, Security(token=stolen)))
            assert code is grpc.StatusCode.UNAUTHENTICATED
            assert await first(worker, peers) == "good"


async def test_servers_admit_callers_as_they_last_knew_while_the_controller_is_away():
    async with running() as controller:
        token = await controller.create("worker", "join")
        async with following(controller, token) as (worker, _):
            await controller.stop()
            assert await first(worker, Security(token=token)) == "worker"
            await controller.start()  # so that leaving the block can stop it again


async def test_the_token_of_the_settings_cannot_be_revoked_but_the_join_token_of_the_settings_can():
    join, store = new_token(), BreakableStore(SystemClock())
    async with running(store, join_token=join, own=new_token()) as controller:
        code, _ = await refusal(controller.revoke(controller.own))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert await first(controller.address, Security(token=join)) == "join"
        await controller.revoke(join)
    async with running(store, join_token=join) as controller:
        code, _ = await refusal(first(controller.address, Security(token=join)))
        assert code is grpc.StatusCode.UNAUTHENTICATED
