"""The doors of a worker: gRPC (Experts, Blobs, health), and stream sockets for gateways that speak them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace

from expertmesh_api.v1 import blobs_pb2_grpc, common_pb2, experts_pb2
from expertmesh_common.bundle.blob_service import SERVICE_NAME as BLOBS
from expertmesh_common.bundle.blob_service import BlobService
from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.channel.host import ExpertHost
from expertmesh_common.channel.messages import SERVICE as EXPERTS
from expertmesh_common.clock import SystemClock
from expertmesh_common.security import Security
from expertmesh_common.serving import Serving
from expertmesh_worker.channel.answering import Shortcut
from expertmesh_worker.channel.experts_service import ExpertsService, Identity
from expertmesh_worker.channel.stream_server import StreamServer
from expertmesh_worker.channel.tickets import Tickets
from expertmesh_worker.settings import split_address


@dataclass(frozen=True, slots=True)
class Doors:
    """Started servers. `endpoint` is what gateways dial first; it offers them the others."""

    endpoint: common_pb2.Endpoint
    _serving: Serving
    _experts: ExpertsService
    _streams: StreamServer

    @property
    def serving(self) -> Serving:
        """The gRPC server."""
        return self._serving

    async def close(self, grace_s: float) -> None:
        """Take no new frame, finish those in flight, then close."""
        await self._experts.drain()
        await asyncio.to_thread(self._streams.stop, grace_s)
        await self._serving.stop(grace_s)


@dataclass(frozen=True, slots=True)
class Behind:
    """What is served: experts, their statistics, and the blobs of the cache."""

    host: ExpertHost
    shortcut: Shortcut
    stat: Callable[[], experts_pb2.StatResponse]
    blobs: BlobStore


async def open_doors(
    behind: Behind,
    identity: Identity,
    security: Security,
    *,
    listen: str,
    advertise: str,
    stream_port: int = 0,
    spin_us: int = 0,
) -> Doors:
    """Listen on `listen` (host:port) for gRPC and on `stream_port` (0: any) beside it for streams.

    Plain streams are polled for `spin_us` before their threads sleep.

    Raises:
        InvalidInput: nothing can listen there.

    """
    tickets = Tickets(SystemClock())
    streams = StreamServer(
        behind.host, tickets, security.ssl_server_context(), shortcut=behind.shortcut, spin_us=spin_us
    )
    security.doorkeeper.on_revoked(tickets.end)
    security.doorkeeper.on_revoked(streams.end)
    unix = [streams.listen_unix()] if hasattr(socket, "AF_UNIX") else []
    tcp = streams.listen_tcp(split_address(listen)[0], stream_port, _bracketed(advertise))
    identity = replace(identity, streams=(*unix, tcp))
    serving = Serving(security)
    experts = ExpertsService(behind.host, tickets, identity, behind.stat, behind.shortcut)
    experts.add_to(serving.server)
    blobs_pb2_grpc.add_BlobsServicer_to_server(BlobService(lambda: (behind.blobs,)), serving.server)
    try:
        port = await serving.start(listen, (EXPERTS, BLOBS))
    except BaseException:
        streams.stop(0)
        raise
    endpoint = common_pb2.Endpoint(transport="grpc", address=f"{_bracketed(advertise)}:{port}")
    return Doors(endpoint, serving, experts, streams)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
