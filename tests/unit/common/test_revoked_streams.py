"""A token that is taken back ends a stream wherever its handler is: waiting for something to say, or saying it."""

import asyncio

import grpc
import pytest

from expertmesh_api.v1 import blobs_pb2, blobs_pb2_grpc
from expertmesh_common.access.scopes import Scope
from expertmesh_common.access.tokens import accepted, new_token
from expertmesh_common.security import Security, dial
from expertmesh_common.serving import Serving


class Talking(blobs_pb2_grpc.BlobsServicer):
    """Says `count` things of a size, then waits."""

    def __init__(self, count, size):
        self.count, self.size, self.said, self.ended = count, size, 0, asyncio.Event()

    async def Fetch(self, request, context):
        try:
            for _ in range(self.count):
                yield blobs_pb2.FetchResponse(data=bytes(self.size), total_bytes=1)
                self.said += 1
            await asyncio.Event().wait()
        finally:
            self.ended.set()


async def read_on(call):
    while await call.read() is not grpc.aio.EOF:
        pass


async def still(talking):
    """Until nothing is said any more: the handler is stuck in handing over, or waits."""
    before = -1
    while talking.said != before:
        before = talking.said
        await asyncio.sleep(0.3)


@pytest.mark.parametrize(("count", "size"), [(3, 10), (200, 1 << 20)], ids=["waiting", "handing over"])
async def test_a_stream_of_a_revoked_token_ends_with_the_reason(count, size):
    security, token = Security(token="own"), new_token()
    security.doorkeeper.publish([accepted(token, "reader", [Scope.JOIN, Scope.ADMIN])])
    serving, talking = Serving(security), Talking(count, size)
    blobs_pb2_grpc.add_BlobsServicer_to_server(talking, serving.server)
    port = await serving.start("127.0.0.1:0")
    try:
        async with dial(f"127.0.0.1:{port}", Security(token=token)) as channel:
            call = blobs_pb2_grpc.BlobsStub(channel).Fetch(blobs_pb2.FetchRequest(), timeout=20)
            await call.read()
            await still(talking)

            security.doorkeeper.publish([])

            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await read_on(call)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert "revoked" in caught.value.details()
            await asyncio.wait_for(talking.ended.wait(), 10)
        assert talking.said < 200
    finally:
        await serving.stop(0)
