"""Asking real worker processes, and what they must answer."""

from __future__ import annotations

import asyncio

import numpy as np

from expertmesh_api.v1 import experts_pb2, experts_pb2_grpc
from expertmesh_common.channel.frame import Request, Status, decode_reply, encode_request, model_key
from expertmesh_common.channel.messages import EXECUTE_METHOD, unwrap, wrap
from expertmesh_common.security import Security, dial
from models.made_experts import HIDDEN, SMALL, reference

TOKEN = "secret"
SECURITY = Security(token=TOKEN)
ROWS = np.random.default_rng(0).standard_normal((3, HIDDEN)).astype(np.float32)


async def end_of(child):
    """Its exit code and what it wrote, once it has ended by itself."""
    async with asyncio.timeout(20):
        _, text = await child.communicate()
    return child.returncode, text.decode()


async def execute(address, index, layer=0):
    """One frame over gRPC to a worker."""
    n = len(ROWS)
    request = Request(
        1, (1, 1), model_key("m"), layer, 5000, {"rows": ROWS}, np.arange(n, dtype=np.uint32),
        np.full(n, index, np.uint16), np.ones(n, np.float32),
    )  # fmt: skip
    async with dial(address, Security()) as channel, asyncio.timeout(10):
        call = channel.stream_stream(EXECUTE_METHOD)(metadata=SECURITY.metadata())
        await call.write(wrap(encode_request(request)))
        reply = decode_reply(unwrap(await call.read()))
        call.cancel()
    return reply


async def stat(address):
    async with dial(address, SECURITY) as channel:
        return await experts_pb2_grpc.ExpertsStub(channel).Stat(experts_pb2.StatRequest(), timeout=10)


def assert_computes(reply, seed):
    expected = reference(SMALL, seed, ROWS)
    assert reply.status is Status.OK
    np.testing.assert_allclose(reply.rows, expected, atol=1e-5 * np.abs(expected).max())
