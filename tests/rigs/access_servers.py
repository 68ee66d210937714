"""A controller's access control on a real server, servers that follow it, and callers with tokens."""

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
from expertmesh_common.access.tokens import split_token
from expertmesh_common.clock import SystemClock
from expertmesh_common.errors import Unavailable
from expertmesh_common.security import Security, dial
from expertmesh_common.serving import Serving
from expertmesh_controller.control.access.control import AccessControl
from expertmesh_controller.control.store.memory_store import MemoryStore


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


async def watch_once(address, token):
    async with dial(address, Security(token=token)) as channel:
        return await access_pb2_grpc.AccessStub(channel).Watch(access_pb2.WatchAccessRequest(), timeout=5).read()
