"""One `Join` stream: hello and welcome, then heartbeats and results up, orders and epochs down."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import grpc.aio

from expertmesh.tls_diagnosis import perhaps_tls, refusal
from expertmesh_api.v1 import common_pb2, membership_pb2, membership_pb2_grpc
from expertmesh_common.clock import Clock
from expertmesh_common.errors import InvalidInput, MeshError, Precondition, Refused, Unauthenticated, Unavailable
from expertmesh_common.security import Security, dial
from expertmesh_worker.agent.orders import Terms

log = logging.getLogger(__name__)

WELCOME_S = 5.0  # a controller that is alive answers a hello at once
DEFAULT_HEARTBEAT_MS = 500  # of a controller that names none
CHECKS_PER_LEASE = 6
LEAVE_S = 5.0  # how long the control loop may take to route around a worker that leaves

Call = Any  # grpc.aio's stream type takes type arguments in its stubs only

# A connection of its own: one that others keep alive would be dialled again while its other end hangs.
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)

# What a stream that has ended raises: its status from reading, that it is over from writing, whichever is first.
STREAM_ERRORS = (grpc.aio.AioRpcError, asyncio.InvalidStateError)

# A worker that is refused for one of these reasons is refused again, however often it asks.
_FINAL: dict[grpc.StatusCode, type[MeshError]] = {
    error.status: error for error in (Unauthenticated, Refused, Precondition, InvalidInput)
}


@dataclass(frozen=True, slots=True)
class Reports:
    """What the worker tells of itself, made anew each time; a heartbeat is given its number."""

    hello: Callable[[], membership_pb2.Hello]
    heartbeat: Callable[[int], membership_pb2.Heartbeat]


class Session:
    """A stream to one controller from hello to end. `accept` is called with every order and returns at once."""

    def __init__(
        self, reports: Reports, accept: Callable[[membership_pb2.Order], None], terms: Terms, clock: Clock
    ) -> None:
        self._reports = reports
        self._accept = accept
        self._terms = terms
        self._clock = clock
        self._outbox: asyncio.Queue[membership_pb2.WorkerMessage] = asyncio.Queue()
        self._quiet_checks = 0

    def send(self, message: membership_pb2.WorkerMessage) -> None:
        """Queue a message; one that is queued before the hello goes out after it."""
        self._outbox.put_nowait(message)

    async def run(self, address: str, security: Security, stop: asyncio.Event, joined: Callable[[], None]) -> None:
        """Dial `address` and serve a stream to it, see `serve`."""
        # The token travels as metadata of the call: interceptors would queue every message.
        async with dial(address, replace(security, token=None), _OWN_CONNECTION) as channel:
            call = membership_pb2_grpc.MembershipStub(channel).Join(metadata=security.metadata())
            try:
                await self.serve(call, address, stop, joined)
            except Unavailable as error:
                if perhaps_tls(str(error)) and (why := await asyncio.to_thread(refusal, address, security.tls)):
                    raise Unavailable(f"the controller at {address} cannot be joined: {why}") from error
                raise

    async def serve(self, call: Call, address: str, stop: asyncio.Event, joined: Callable[[], None]) -> None:
        """Serve the stream until `stop` is set and the leave is acknowledged.

        `joined` is called once the controller has welcomed this worker.

        Raises:
            MeshError: Unavailable when the stream or the controller is gone; another one when the join was refused.

        """
        try:
            welcome = await self._greet(call, address)
            joined()
            log.info("joined the controller at %s lease_ms=%d", address, welcome.lease_ms)
            await self._exchange(call, welcome, stop)
        except STREAM_ERRORS as error:
            raise Unavailable(f"the stream to {address} ended: {await _ending(call)}") from error
        finally:
            call.cancel()

    async def _greet(self, call: Call, address: str) -> membership_pb2.Welcome:
        try:
            async with asyncio.timeout(WELCOME_S):
                await call.write(membership_pb2.WorkerMessage(hello=self._reports.hello()))
                message = await call.read()
        except TimeoutError:
            raise Unavailable(f"the controller at {address} did not answer within {WELCOME_S:g} s") from None
        except STREAM_ERRORS:
            raise _refusal(await call.code(), await call.details(), address) from None
        if not isinstance(message, membership_pb2.ControlMessage):
            raise _refusal(await call.code(), await call.details(), address)
        if message.WhichOneof("body") != "welcome":
            raise Unavailable(f"the controller at {address} answered a hello with {message.WhichOneof('body')}")
        self._see(message.welcome.epoch, message.welcome.incarnation)
        return message.welcome

    def _see(self, epoch: common_pb2.Epoch, incarnation: str) -> None:
        """Follow the leader of `epoch`. An old one may not know it yet; the newer one will be there to join."""
        self._terms.count_for(incarnation)
        try:
            self._terms.see(epoch)
        except Precondition as error:
            raise Unavailable(f"the controller's epoch is {error}") from error

    async def _exchange(self, call: Call, welcome: membership_pb2.Welcome, stop: asyncio.Event) -> None:
        """Until the stream ends, or `stop` is set and the controller has let go."""
        writing = asyncio.create_task(self._write(call))
        beating = asyncio.create_task(self._beat((welcome.heartbeat_ms or DEFAULT_HEARTBEAT_MS) / 1e3))
        reading = asyncio.create_task(self._read(call))
        stopping = asyncio.create_task(stop.wait())
        tasks = [writing, beating, reading, stopping]
        if welcome.pulse_ms:
            tasks.append(asyncio.create_task(self._listen(welcome.lease_ms / 1e3)))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if stop.is_set():
                await self._leave(reading)
            else:
                raise Unavailable("the controller closed the stream")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, call: Call) -> None:
        while True:
            await call.write(await self._outbox.get())

    async def _beat(self, heartbeat_s: float) -> None:
        n = 0
        while True:
            n += 1
            self.send(membership_pb2.WorkerMessage(heartbeat=self._reports.heartbeat(n)))
            await self._clock.sleep(heartbeat_s)

    async def _read(self, call: Call) -> None:
        async for message in _messages(call):
            self._quiet_checks = 0
            match message.WhichOneof("body"):
                case "order":
                    self._accept(message.order)
                case "epoch":
                    self._see(message.epoch.epoch, message.epoch.incarnation)
                case other:
                    log.warning("the controller sent %s, which this version does not know", other)

    async def _listen(self, lease_s: float) -> None:
        """Until the controller said nothing for a lease: it hangs, or what answers the pings is not it any more.

        Counted in checks and not by the clock, so that a worker that slept itself hears first what waits for it.
        """
        while self._quiet_checks < CHECKS_PER_LEASE:
            await self._clock.sleep(lease_s / CHECKS_PER_LEASE)
            self._quiet_checks += 1
        raise Unavailable(f"the controller said nothing for {lease_s:g} s")

    async def _leave(self, reading: asyncio.Task[None]) -> None:
        """Say so, and wait until the control loop has routed around this worker and closes the stream."""
        self.send(membership_pb2.WorkerMessage(leave=membership_pb2.Leave(reason="stopping")))
        log.info("leaving: waiting for the controller to route around this worker")
        await asyncio.wait((reading,), timeout=LEAVE_S)  # ended well or not, nothing is left to say


async def _messages(call: Call) -> AsyncIterator[membership_pb2.ControlMessage]:
    while isinstance(message := await call.read(), membership_pb2.ControlMessage):
        yield message
    if await call.code() is not grpc.StatusCode.OK:
        raise Unavailable(f"the controller ended the stream: {await _ending(call)}")


async def _ending(call: Call) -> str:
    """Why a stream ended; ending it first, so that this never waits for one that lives."""
    call.cancel()
    return f"{(await call.code()).name} {await call.details()}"


def _refusal(code: grpc.StatusCode, details: str | None, address: str) -> MeshError:
    """The error for a join that ended before its welcome."""
    kind = _FINAL.get(code)
    if kind is not None:
        return kind(f"the controller at {address} refused this worker: {details}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return InvalidInput(f"{address} is not a controller: pass the address of one with --join")
    return Unavailable(f"the controller at {address} is not there: {code.name} {details}")
