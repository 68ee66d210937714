"""A stream that ends while the worker writes to it is a stream to replace, never a reason to end."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from expertmesh_api.v1 import membership_pb2
from expertmesh_common.clock import SystemClock
from expertmesh_common.errors import Unavailable
from expertmesh_worker.agent.orders import Terms
from expertmesh_worker.agent.session import Reports, Session


class EndedCall:
    """A stream whose end is seen by a write before any read: what grpc.aio does when the server goes away then."""

    def __init__(self):
        self._written = 0
        self._messages = [membership_pb2.ControlMessage(welcome=membership_pb2.Welcome(heartbeat_ms=1))]

    async def write(self, _message):
        self._written += 1
        if self._written > 1:
            raise asyncio.InvalidStateError("RPC already finished.")

    async def read(self):
        if self._messages:
            return self._messages.pop()
        return await asyncio.Event().wait()

    async def code(self):
        return grpc.StatusCode.UNAVAILABLE

    async def details(self):
        return "going away"

    def cancel(self):
        pass


@pytest.mark.parametrize("stopping", [False, True])
async def test_a_stream_that_has_ended_when_it_is_written_to_is_unavailable(stopping):
    reports = Reports(lambda: membership_pb2.Hello(worker_id="w"), lambda n: membership_pb2.Heartbeat(n=n))
    session = Session(reports, lambda order: None, Terms(), SystemClock())
    stop = asyncio.Event()
    joined = stop.set if stopping else asyncio.Event().set

    with pytest.raises(Unavailable, match="the stream to host:7070 ended: UNAVAILABLE going away"):
        async with asyncio.timeout(5):
            await session.serve(EndedCall(), "host:7070", stop, joined)
