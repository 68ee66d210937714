"""A stream that ends while the worker writes to it is a stream to replace, never a reason to end."""

from __future__ import annotations

import asyncio
from functools import partial

import grpc
import pytest

from expertmesh_api.v1 import common_pb2, membership_pb2
from expertmesh_common.clock import SystemClock
from expertmesh_common.errors import Unavailable
from expertmesh_worker.agent.orders import Terms
from expertmesh_worker.agent.session import Reports, Session

LEASE_MS = 300


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


class QuietCall:
    """A stream that stands: a welcome, then an epoch after each of `pauses_s`, then nothing any more."""

    def __init__(self, pauses_s=(), **welcome):
        self._pauses_s = list(pauses_s)
        self._welcome = membership_pb2.Welcome(heartbeat_ms=1000, lease_ms=LEASE_MS, **welcome)
        self.told = asyncio.Event()

    async def write(self, _message):
        pass

    async def read(self):
        if self._welcome is not None:
            welcome, self._welcome = self._welcome, None
            return membership_pb2.ControlMessage(welcome=welcome)
        if self._pauses_s:
            await asyncio.sleep(self._pauses_s.pop())
            return membership_pb2.ControlMessage(epoch=membership_pb2.EpochChanged())
        self.told.set()
        return await asyncio.Event().wait()

    async def code(self):
        return grpc.StatusCode.OK

    def cancel(self):
        pass


def session(terms=None):
    reports = Reports(lambda: membership_pb2.Hello(worker_id="w"), lambda n: membership_pb2.Heartbeat(n=n))
    return Session(reports, lambda order: None, terms or Terms(), SystemClock())


async def test_a_controller_that_promised_a_pulse_and_says_nothing_for_a_lease_is_left():
    with pytest.raises(Unavailable, match=r"said nothing for 0\.3 s"):
        async with asyncio.timeout(5):
            await session().serve(QuietCall(pulse_ms=100), "host:7070", asyncio.Event(), lambda: None)


async def test_whoever_says_anything_within_the_lease_is_stayed_with():
    call = QuietCall(pauses_s=[0.1] * 8, pulse_ms=100)
    with pytest.raises(Unavailable, match="said nothing"):
        async with asyncio.timeout(5):
            await session().serve(call, "host:7070", asyncio.Event(), lambda: None)
    assert call.told.is_set(), "not before the last pulse"


async def test_a_controller_of_before_pulses_may_be_silent():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3 * LEASE_MS / 1e3):
            await session().serve(QuietCall(), "host:7070", asyncio.Event(), lambda: None)


@pytest.mark.parametrize(("incarnation", "welcome"), [("first", False), ("second", True)])
async def test_a_controller_of_an_older_term_is_joined_only_if_its_store_is_another_one(incarnation, welcome):
    terms, joined = Terms(), []
    for term, store in ((5, "first"), (1, incarnation)):
        call = QuietCall(pulse_ms=100, epoch=common_pb2.Epoch(term=term), incarnation=store)
        with pytest.raises(Unavailable):
            await session(terms).serve(call, "host:7070", asyncio.Event(), partial(joined.append, term))
    assert joined == ([5, 1] if welcome else [5])
