"""The HTTP server of a controller or gateway process: started, given routes, drained."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from aiohttp import web

from expertmesh_common.errors import InvalidInput
from expertmesh_common.security import Security
from expertmesh_common.tls import TlsFiles
from expertmesh_controller.gateway.answering import Answering
from expertmesh_controller.gateway.openai.door import BODY_BYTES, PREFIX, openai_app
from expertmesh_controller.gateway.openai.guarding import errors, name_request
from expertmesh_controller.http_address import host_and_port, http_address
from expertmesh_controller.http_tls import DoorContext
from expertmesh_controller.local.reaching import is_local_only

__all__ = ["HttpDoor", "openai_door"]

log = logging.getLogger(__name__)


class HttpDoor:
    """Serves applications under their prefixes, with TLS if `tls` names files. Start it, then stop it.

    A client that goes away cancels its handler. Requests get `drain_s` seconds to end at `stop`.
    """

    def __init__(
        self,
        tls: TlsFiles | None,
        drain_s: float,
        *,
        apps: Mapping[str, web.Application] | None = None,
        routes: Iterable[web.AbstractRouteDef] = (),
    ) -> None:
        app = web.Application(middlewares=[errors], client_max_size=BODY_BYTES)
        app.on_response_prepare.append(name_request)
        app.add_routes(routes)
        for prefix, inner in (apps or {}).items():
            app.add_subapp(prefix, inner)
        self._tls = tls
        self._runner = web.AppRunner(
            app, handler_cancellation=True, auto_decompress=False, access_log=None, shutdown_timeout=drain_s
        )

    async def start(self, address: str) -> int:
        """Listen on `host:port` (port 0: any free one). Returns the port.

        Raises:
            InvalidInput: nothing can listen there.

        """
        host, port = host_and_port(address)
        await self._runner.setup()
        context = None if self._tls is None else DoorContext(self._tls)
        try:
            await web.TCPSite(self._runner, host, port, ssl_context=context).start()
        except OSError as error:
            raise InvalidInput(
                f"cannot serve HTTP on {address}: {error.strerror}; pick another address with --http-listen, "
                "or --http-listen off"
            ) from error
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Refuse new connections, let requests under way end, then cut them off. Harmless if it never started."""
        await self._runner.cleanup()


async def openai_door(
    answering: Answering, security: Security, asked: str | None, listen: str, drain_s: float
) -> HttpDoor | None:
    """The OpenAI door, listening; None if it is switched off, or nobody could be told from a stranger there.

    Raises:
        InvalidInput: nothing can listen there; or the door was asked for and would let everybody in.

    """
    address = http_address(asked, listen)
    if address is None:
        return None
    # Callers of gRPC may prove who they are with certificates. Here they bring none, so it takes a token.
    if not security.doorkeeper.demands and (security.tls is not None or not is_local_only(address)):
        why = "certificates are not asked for here" if security.tls is not None else "it lets other machines in"
        without = f"no HTTP on {address} without a token: {why}; pass --token or EXPERTMESH_TOKEN"
        if asked is not None:
            raise InvalidInput(without)
        log.warning("%s", without)
        return None
    door = HttpDoor(security.tls, drain_s, apps={PREFIX: openai_app(answering, security)})
    try:
        port = await door.start(address)
    except InvalidInput:
        await door.stop()
        raise
    log.info("OpenAI API on %s port=%d path=%s tls=%s", address, port, PREFIX, security.tls is not None)
    return door
