"""A gRPC server as every service of the mesh runs it: token check, error mapping, health, reflection, drain."""

from __future__ import annotations

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from expertmesh.tls_diagnosis import own_problem
from expertmesh_common.access.guard import RETRY_AFTER_KEY, Audit, Context, Guard
from expertmesh_common.errors import InvalidInput
from expertmesh_common.security import MESSAGE_LIMITS, Security

__all__ = ["RETRY_AFTER_KEY", "SERVER_OPTIONS", "Context", "Serving"]

# Each connection may have this many calls at once; more wait on the caller's side.
MAX_STREAMS_PER_CONNECTION = 1024
# Who connects and then says nothing holds a socket, so not for long.
HANDSHAKE_MS = 5000

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *MESSAGE_LIMITS,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.so_reuseport", 0),  # a port that is taken must be an error, not a lottery
    ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
)


class Serving:
    """A server that is configured once, started, and drained.

    Add servicers to `server` before `start`. Every call but health is asked for a token that `security` accepts for it,
    if it demands any; `audit` gets the calls that change something.
    """

    def __init__(self, security: Security, audit: Audit | None = None) -> None:
        self._security = security
        self._health = health.aio.HealthServicer()
        guard = Guard(security.doorkeeper, audit)
        self.server = grpc.aio.server(interceptors=(guard,), options=SERVER_OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)

    async def start(self, address: str, services: tuple[str, ...] = ()) -> int:
        """Listen on `host:port` (port 0: any free one) or `unix:path`; `services` go to reflection. Returns the port.

        Raises:
            InvalidInput: nothing can listen there, or the certificate is expired, foreign or without its key.

        """
        tls = None if address.startswith("unix:") else self._security.tls
        if tls is not None and (problem := own_problem(tls)) is not None:
            raise InvalidInput(problem)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.server)
        credentials = None if tls is None else self._security.server_credentials()
        try:
            port = (
                self.server.add_insecure_port(address)
                if credentials is None
                else self.server.add_secure_port(address, credentials)
            )
        except RuntimeError as error:
            raise InvalidInput(
                f"cannot listen on {address}: is another process using it? Pick another with --listen"
            ) from error
        await self.server.start()
        await self.set_serving("", True)
        return port

    async def set_serving(self, service: str, serving: bool) -> None:
        """What the health service answers for `service` ("" is the whole process)."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(service, status)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give running ones `grace_s` seconds, then end them."""
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace_s)
