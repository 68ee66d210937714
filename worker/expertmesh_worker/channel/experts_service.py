"""The Experts service: agreeing on a transport, the expert channel over gRPC, statistics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np

from expertmesh_api.v1 import common_pb2, experts_pb2
from expertmesh_common.access.identity import current_caller
from expertmesh_common.channel.frame import MAX_FRAME_BYTES
from expertmesh_common.channel.host import ExpertHost
from expertmesh_common.channel.layout import VERSION
from expertmesh_common.channel.messages import SERVICE, unwrap, wrap
from expertmesh_common.errors import CorruptData, InvalidInput, Precondition, Unavailable
from expertmesh_common.serving import Context
from expertmesh_worker.channel.answering import Answer, Shortcut, answer, refuse
from expertmesh_worker.channel.tickets import Tickets

# Larger requests, and those that have to wait for a lane, run in a thread: heartbeats and health keep their turn.
INLINE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answers here. `streams` are the stream endpoints that tickets are good for."""

    worker_id: str
    generation: str
    host_id: str
    streams: tuple[common_pb2.Endpoint, ...] = ()


class ExpertsService:
    """Serves one host's experts. `stat` makes the answer of Stat."""

    def __init__(
        self,
        host: ExpertHost,
        tickets: Tickets,
        identity: Identity,
        stat: Callable[[], experts_pb2.StatResponse],
        shortcut: Shortcut | None = None,
    ) -> None:
        self._shortcut = shortcut
        self._host, self._tickets, self._identity, self._stat = host, tickets, identity, stat
        self._busy: dict[asyncio.Task[object], bool] = {}
        self._draining = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service. Execute handles raw messages: frames are never copied into protobuf objects."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Open": grpc.unary_unary_rpc_method_handler(
                self.open, experts_pb2.OpenRequest.FromString, experts_pb2.OpenResponse.SerializeToString
            ),
            "Stat": grpc.unary_unary_rpc_method_handler(
                self.stat, experts_pb2.StatRequest.FromString, experts_pb2.StatResponse.SerializeToString
            ),
            "Execute": grpc.stream_stream_rpc_method_handler(self.execute),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def open(self, request: experts_pb2.OpenRequest, _context: Context) -> experts_pb2.OpenResponse:
        """The first transport that the caller offers and this worker has for it, and a ticket for a stream."""
        self._refuse_when_draining()
        if VERSION not in request.frame_versions:
            raise Precondition(
                f"this worker speaks frame version {VERSION}, the gateway {list(request.frame_versions)}: "
                "run versions that are at most one minor apart"
            )
        endpoint = choose(request.transports, request.host_id == self._identity.host_id, self._identity.streams)
        return experts_pb2.OpenResponse(
            endpoint=endpoint,
            ticket=b"" if endpoint.transport == "grpc" else self._tickets.issue(current_caller().token_id),
            frame_version=VERSION,
            max_frame_bytes=MAX_FRAME_BYTES,
            worker_id=self._identity.worker_id,
            generation=self._identity.generation,
        )

    async def stat(self, _request: experts_pb2.StatRequest, _context: Context) -> experts_pb2.StatResponse:
        return self._stat()

    async def execute(self, messages: AsyncIterator[bytes], _context: Context) -> AsyncIterator[bytes]:
        """The expert channel: one reply per request frame, in order; a malformed frame ends the stream."""
        task = asyncio.current_task()
        assert task is not None
        self._refuse_when_draining()
        self._busy[task] = False
        try:
            async for message in messages:
                self._busy[task] = True
                reply = await self._answer(message)
                yield wrap(reply.chunks)
                if reply.last or self._draining:
                    return
                self._busy[task] = False
        except asyncio.CancelledError:
            if not self._draining:
                raise
            task.uncancel()  # drain() ended an idle stream: say so instead of vanishing
            raise Unavailable("this worker is draining; use another replica") from None
        finally:
            del self._busy[task]

    async def drain(self) -> None:
        """Refuse new streams and end the idle ones; busy ones end after their frame. Call before the server's stop."""
        self._draining = True
        for task, busy in list(self._busy.items()):
            if not busy:
                task.cancel()

    async def _answer(self, message: bytes) -> Answer:
        try:
            data = unwrap(message)
        except CorruptData as error:
            return Answer(refuse(error), last=True)
        if len(data) <= INLINE_BYTES and not (self._shortcut is not None and self._shortcut.busy):
            return self._answer_now(data)
        return await asyncio.to_thread(_answer_later, self._host, data, time.monotonic())

    def _answer_now(self, data: memoryview) -> Answer:
        if self._shortcut is None:
            return answer(self._host, data)
        with np.errstate(over="ignore", invalid="ignore"):
            known = self._shortcut.answer(data)
        if known is not None:
            return Answer([known])
        found = answer(self._host, data)
        if found.good:
            self._shortcut.learn(data)
        return found

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise Unavailable("this worker is draining; use another replica")


def _answer_later(host: ExpertHost, data: memoryview, arrived: float) -> Answer:
    return answer(host, data, (time.monotonic() - arrived) * 1000)


def choose(offered: Sequence[str], same_host: bool, streams: Sequence[common_pb2.Endpoint]) -> common_pb2.Endpoint:
    """The endpoint of the first offered transport that can work; unix only between processes of one host.

    Raises:
        InvalidInput: none can.

    """
    here = {endpoint.transport: endpoint for endpoint in reversed(streams)}
    here["grpc"] = common_pb2.Endpoint(transport="grpc")
    if not same_host:
        here.pop("unix", None)
    for transport in offered:
        if transport in here:
            return here[transport]
    raise InvalidInput(f"no transport in common: offered {list(offered)}, here {sorted(here)}")
