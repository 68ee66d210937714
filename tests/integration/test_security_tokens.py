"""Given-out tokens on real servers: what they may do, how they end, and what is written down."""

from __future__ import annotations

import asyncio
import contextlib
import time

import grpc
import pytest

from expertmesh_api.v1 import (
    access_pb2,
    access_pb2_grpc,
    blobs_pb2,
    blobs_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
)
from expertmesh_common.access.following import AccessFollower
from expertmesh_common.access.identity import caller_name
from expertmesh_common.access.tokens import new_token, split_token
from expertmesh_common.clock import SystemClock
from expertmesh_common.errors import Unavailable
from expertmesh_common.security import Security, dial
from expertmesh_common.serving import Serving
from expertmesh_controller.control.access.audit import AUDIT_KEY
from expertmesh_controller.control.access.control import AccessControl
from expertmesh_controller.control.access.record import ACCESS_KEY
from expertmesh_controller.control.store.memory_store import MemoryStore

REVOKED_WITHIN_S = 3.0  # promised: 1 s


class Endless(blobs_pb2_grpc.BlobsServicer):
    """Streams the caller's name until the call ends."""

    async def Fetch(self, request, context):
        while True:
            yield blobs_pb2.FetchResponse(data=caller_name().encode())
            await asyncio.sleep(0.01)


class Nodes(operations_pb2_grpc.OperationsServicer):
    async def ListNodes(self, request, context):
        return operations_pb2.ListNodesResponse()


class BreakableStore(MemoryStore):
    """A store whose server goes and comes back."""

    gone = False

    async def get(self, key):
        self._check()
        return await super().get(key)

    async def append(self, *arguments):
        self._check()
        await super().append(*arguments)

    def _check(self):
        if self.gone:
            raise Unavailable("the store does not answer")


class Controller:
    """Access control on a real server; `ask` calls Access as whoever holds a token."""

    def __init__(self, store, join_token=None, own="s3cret"):
        self.own, self.store = own, store
        self.security = Security(token=own)
        self.access = AccessControl(store, self.security, join_token, SystemClock())

    async def start(self):
        lease = await self.store.acquire("control-loop", "test", 3600)
        self.access.lease = lambda: lease
        await self.access.load()
        self.running = asyncio.create_task(self.access.run())
        self.serving = Serving(self.security, self.access.audit.note)
        self.access.add_to(self.serving.server)
        blobs_pb2_grpc.add_BlobsServicer_to_server(Endless(), self.serving.server)
        operations_pb2_grpc.add_OperationsServicer_to_server(Nodes(), self.serving.server)
        self.address = f"127.0.0.1:{await self.serving.start('127.0.0.1:0')}"

    async def stop(self):
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.serving.stop(0)

    async def ask(self, method, request, token=None):
        async with dial(self.address, Security(token=token or self.own)) as channel:
            return await getattr(access_pb2_grpc.AccessStub(channel), method)(request, timeout=5)

    async def create(self, name, *scopes, ttl_ms=0):
        request = access_pb2.CreateTokenRequest(name=name, scopes=scopes, ttl_ms=ttl_ms)
        return (await self.ask("CreateToken", request)).token

    async def revoke(self, token):
        return await self.ask("RevokeToken", access_pb2.RevokeTokenRequest(id=split_token(token).id))

    async def audit(self):
        return (await self.ask("ListAudit", access_pb2.ListAuditRequest())).entries


@contextlib.asynccontextmanager
async def running(store=None, **options):
    controller = Controller(store or BreakableStore(SystemClock()), **options)
    await controller.start()
    try:
        yield controller
    finally:
        await controller.stop()


@contextlib.asynccontextmanager
async def following(controller, token):
    """A server of another process that admits callers as the controller says."""
    security = Security(token=token)
    follower = AccessFollower(security, controller.address, SystemClock())
    task = asyncio.create_task(follower.run())
    serving = Serving(security)
    blobs_pb2_grpc.add_BlobsServicer_to_server(Endless(), serving.server)
    address = f"127.0.0.1:{await serving.start('127.0.0.1:0')}"
    try:
        async with asyncio.timeout(5):
            while not follower.towards_parts.metadata():  # noqa: ASYNC110 - a pass that comes rings no bell
                await asyncio.sleep(0.01)
        yield address, follower.towards_parts
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await serving.stop(0)


async def list_nodes(address, token):
    async with dial(address, Security(token=token)) as channel:
        return await operations_pb2_grpc.OperationsStub(channel).ListNodes(operations_pb2.ListNodesRequest(), timeout=5)


@contextlib.asynccontextmanager
async def stream(address, security):
    async with dial(address, security) as channel:
        call = blobs_pb2_grpc.BlobsStub(channel).Fetch(blobs_pb2.FetchRequest(), timeout=30)
        yield call
        call.cancel()


async def first(address, security):
    async with stream(address, security) as call:
        return (await call.read()).data.decode()


async def end_of(call):
    """The status a stream ends with, and how many seconds that took."""
    began = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value.code(), caught.value.details(), time.monotonic() - began


async def refusal(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value.code(), caught.value.details()


async def test_a_token_does_what_its_scopes_say_and_a_refusal_names_the_scope_that_is_needed():
    async with running() as controller:
        operate, infer = await controller.create("ops", "operate"), await controller.create("app", "infer")
        await list_nodes(controller.address, operate)

        assert await refusal(list_nodes(controller.address, infer)) == (
            grpc.StatusCode.PERMISSION_DENIED, "token 'app' has the scope infer; this call needs operate"
        )  # fmt: skip
        code, _ = await refusal(controller.ask("ListTokens", access_pb2.ListTokensRequest(), operate))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        for unknown in (new_token(), "guess", operate[:-1]):
            code, words = await refusal(list_nodes(controller.address, unknown))
            assert code is grpc.StatusCode.UNAUTHENTICATED
            assert unknown not in words


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


async def watch_once(address, token):
    async with dial(address, Security(token=token)) as channel:
        return await access_pb2_grpc.AccessStub(channel).Watch(access_pb2.WatchAccessRequest(), timeout=5).read()


async def test_a_server_that_has_not_heard_from_its_controller_yet_refuses_no_given_out_token_for_good():
    own = new_token()
    security = Security(token=own)
    AccessFollower(security, "127.0.0.1:1", SystemClock())
    serving = Serving(security)
    blobs_pb2_grpc.add_BlobsServicer_to_server(Endless(), serving.server)
    address = f"127.0.0.1:{await serving.start('127.0.0.1:0')}"
    code, _ = await refusal(first(address, Security(token=new_token())))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert await first(address, security) == "bootstrap"
    await serving.stop(0)


async def test_servers_admit_callers_as_they_last_knew_while_the_controller_is_away():
    async with running() as controller:
        token = await controller.create("worker", "join")
        async with following(controller, token) as (worker, _):
            await controller.stop()
            assert await first(worker, Security(token=token)) == "worker"
            await controller.start()  # so that leaving the block can stop it again


async def test_the_audit_says_who_did_what_with_which_result_and_survives_a_restart():
    store = BreakableStore(SystemClock())
    async with running(store) as controller:
        admin = await controller.create("alice", "admin")
        infer = await controller.create("app", "infer")
        await controller.ask("RevokeToken", access_pb2.RevokeTokenRequest(id=split_token(infer).id), admin)
        await refusal(controller.ask("RevokeToken", access_pb2.RevokeTokenRequest(id="nobody"), admin))
        await refusal(controller.ask("ListTokens", access_pb2.ListTokensRequest(), new_token()))
        low = await controller.create("low", "operate")
        await refusal(controller.ask("CreateToken", access_pb2.CreateTokenRequest(name="x"), low))
    async with running(store) as controller:
        entries = [(e.token_name, e.method, e.result) for e in await controller.audit()]
        assert entries == [
            ("bootstrap", "Access/CreateToken", "OK"),
            ("bootstrap", "Access/CreateToken", "OK"),
            ("alice", "Access/RevokeToken", "OK"),
            ("alice", "Access/RevokeToken", "NOT_FOUND"),
            ("bootstrap", "Access/CreateToken", "OK"),
            ("low", "Access/CreateToken", "PERMISSION_DENIED"),
        ]
        last = (await controller.audit())[2]
        assert (last.token_id, last.peer, len(last.arguments_digest)) == (split_token(admin).id, "127.0.0.1", 64)
        assert await list_nodes(controller.address, low) is not None  # tokens survive too


async def test_neither_store_nor_listing_nor_log_contains_a_secret(caplog):
    caplog.set_level("DEBUG")
    store = BreakableStore(SystemClock())
    async with running(store) as controller:
        token = await controller.create("alice", "admin")
        await controller.ask("ListTokens", access_pb2.ListTokensRequest(), token)
        await refusal(list_nodes(controller.address, token[:-1]))
        kept = await store.get(ACCESS_KEY) + b"".join(await store.tail(AUDIT_KEY, 100))
        listed = await controller.ask("ListTokens", access_pb2.ListTokensRequest())
    secret = split_token(token).secret
    for text in (kept.decode(), str(listed), caplog.text):
        assert secret[:-1] not in text
        assert "s3cret" not in text


async def test_while_the_store_is_gone_tokens_stay_good_none_is_made_and_the_audit_waits():
    async with running() as controller:
        token = await controller.create("ops", "operate")
        controller.store.gone = True
        await list_nodes(controller.address, token)
        code, _ = await refusal(
            controller.ask("CreateToken", access_pb2.CreateTokenRequest(name="x", scopes=["infer"]))
        )
        assert code is grpc.StatusCode.UNAVAILABLE
        controller.store.gone = False
        assert [(e.method, e.result) for e in await controller.audit()] == [
            ("Access/CreateToken", "OK"), ("Access/CreateToken", "UNAVAILABLE")
        ]  # fmt: skip


async def test_a_controller_that_cannot_read_its_store_yet_refuses_no_given_out_token_for_good():
    store = BreakableStore(SystemClock())
    store.gone = True
    async with running(store) as controller:
        code, _ = await refusal(list_nodes(controller.address, new_token()))
        assert code is grpc.StatusCode.UNAVAILABLE
        await list_nodes(controller.address, "s3cret")


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (access_pb2.CreateTokenRequest(name="", scopes=["infer"]), "name"),
        (access_pb2.CreateTokenRequest(name="a b", scopes=["infer"]), "name"),
        (access_pb2.CreateTokenRequest(name="bootstrap", scopes=["infer"]), "name"),
        (access_pb2.CreateTokenRequest(name="a"), "scopes"),
        (access_pb2.CreateTokenRequest(name="a", scopes=["peer"]), "scopes"),
        (access_pb2.CreateTokenRequest(name="a", scopes=["infer"], ttl_ms=2**60), "ttl_ms"),
    ],
)
async def test_a_wrong_request_for_a_token_is_refused_with_its_field_named(request_, named):
    async with running() as controller:
        code, words = await refusal(controller.ask("CreateToken", request_))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words.startswith(f"{named}:")


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


async def test_a_mesh_that_demands_no_token_gives_none_out():
    async with running(own=None) as controller:
        code, words = await refusal(
            controller.ask("CreateToken", access_pb2.CreateTokenRequest(name="a", scopes=["infer"]))
        )
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "--token" in words
