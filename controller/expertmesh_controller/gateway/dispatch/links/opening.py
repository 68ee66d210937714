"""Opening a link: agree on a transport over gRPC, then connect it. Blocking; runs in a keeper's thread."""

from __future__ import annotations

import logging
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import grpc

from expertmesh_api.v1 import common_pb2, experts_pb2
from expertmesh_common.channel.handshake import present
from expertmesh_common.channel.host import host_id
from expertmesh_common.channel.layout import VERSION
from expertmesh_common.channel.messages import SERVICE
from expertmesh_common.errors import InvalidInput, MeshError, Precondition, Unavailable
from expertmesh_common.security import MESH_NAME, Security
from expertmesh_controller.cluster.routes import WorkerRoute
from expertmesh_controller.gateway.dispatch.links.base import Link
from expertmesh_controller.gateway.dispatch.links.grpc import GrpcLink, dial_blocking, reason
from expertmesh_controller.gateway.dispatch.links.stream import StreamLink
from expertmesh_controller.gateway.dispatch.links.watchdog import Watchdog

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S: Final = 2.0
Transport = Literal["auto", "unix", "tcp", "grpc"]
_AUTO: Final = ("unix", "tcp", "grpc")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who opens links, how it is authenticated, which transport it wants, and how it waits on streams."""

    gateway_id: str
    security: Security = field(default_factory=Security)
    transport: Transport = "auto"
    host_id: str = field(default_factory=host_id)
    spin_us: int = 0
    """How long a plain stream is polled for a reply before the caller sleeps."""


def open_link(worker: WorkerRoute, caller: Caller, watchdog: Watchdog) -> Link:
    """A working link to `worker`; a stream that cannot be connected is given up for the next transport.

    Raises:
        MeshError: the worker cannot be reached, refuses, is another generation, or no wanted transport works.

    """
    endpoint = worker.endpoint("grpc")
    if endpoint is None:
        raise InvalidInput(f"worker {worker.worker_id} has no grpc endpoint in the route table")
    channel = dial_blocking(endpoint.address, caller.security)
    link: Link | None = None
    try:
        link = _negotiate(worker, caller, channel, watchdog)
    finally:
        if not isinstance(link, GrpcLink):  # that one owns the channel
            channel.close()
    return link


def _negotiate(worker: WorkerRoute, caller: Caller, channel: grpc.Channel, watchdog: Watchdog) -> Link:
    offered: list[str] = list(_AUTO if caller.transport == "auto" else (caller.transport,))
    failures: list[str] = []
    while offered:
        agreed = _agree(worker, caller, channel, offered)
        transport = agreed.endpoint.transport
        if transport == "grpc":
            return GrpcLink(worker.worker_id, channel, caller.security, watchdog)
        try:
            connection = _connect(agreed.endpoint, caller.security, agreed.ticket)
            return StreamLink(worker.worker_id, transport, connection, caller.spin_us)
        except (OSError, MeshError) as error:
            log.warning(
                "worker %s: no %s stream to %s: %s", worker.worker_id, transport, agreed.endpoint.address, error
            )
            failures.append(f"{transport}: {error}")
            offered.remove(transport)
    raise Unavailable(f"no transport to worker {worker.worker_id} works: {'; '.join(failures)}")


def _agree(worker: WorkerRoute, caller: Caller, channel: grpc.Channel, offered: list[str]) -> experts_pb2.OpenResponse:
    open_call = channel.unary_unary(
        f"/{SERVICE}/Open", experts_pb2.OpenRequest.SerializeToString, experts_pb2.OpenResponse.FromString
    )
    request = experts_pb2.OpenRequest(
        gateway_id=caller.gateway_id, host_id=caller.host_id, transports=offered, frame_versions=[VERSION]
    )
    try:
        response: experts_pb2.OpenResponse = open_call(
            request, timeout=OPEN_TIMEOUT_S, metadata=caller.security.metadata()
        )
    except grpc.RpcError as error:
        raise Unavailable(f"worker {worker.worker_id} did not open a channel: {reason(error)}") from error
    if response.generation != worker.generation:
        raise Precondition(
            f"worker {worker.worker_id} answers as generation {response.generation}, the table has {worker.generation}"
        )
    return response


def _connect(endpoint: common_pb2.Endpoint, security: Security, ticket: bytes) -> socket.socket:
    """A connection whose ticket was accepted."""
    connection = _connect_unix(endpoint.address) if endpoint.transport == "unix" else _connect_tcp(endpoint, security)
    try:
        present(connection, ticket)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_unix(path: str) -> socket.socket:
    if not Path(path).is_socket():
        raise Unavailable(f"{path} is not reachable from here")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(OPEN_TIMEOUT_S)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def _connect_tcp(endpoint: common_pb2.Endpoint, security: Security) -> socket.socket:
    host, _, port = endpoint.address.rpartition(":")
    host = host.strip("[]")
    connection = socket.create_connection((host, int(port)), OPEN_TIMEOUT_S)
    context: ssl.SSLContext | None = security.ssl_client_context()
    if context is None:
        return connection
    with connection:  # the wrapped socket takes the descriptor over; this closes it only if the handshake fails
        return context.wrap_socket(connection, server_hostname=MESH_NAME)
