"""Status pages over HTTP, served by threads of their own: they answer also when the event loop does not."""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from expertmesh_common.errors import InvalidInput

__all__ = ["AUTO", "OFF", "Page", "StatusServer", "listen_status"]

log = logging.getLogger(__name__)

AUTO = "auto"
OFF = "off"
LOOPBACK = "127.0.0.1"
READ_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 16


class Page(NamedTuple):
    """An answer: HTTP status, bytes, and their type."""

    status: int
    body: bytes
    content_type: str = "application/json"


Pages = Mapping[str, Callable[[str], Page]]
"""By path; each is given the Accept header ("" without one) and may be called on any thread."""


class StatusServer:
    """Listens from the start to `stop`. Plain HTTP without a token: bind it where only monitoring can reach it."""

    def __init__(self, pages: Pages, host: str, port: int) -> None:
        self._server = _Server(pages, host, port)
        bound = self._server.server_address
        self.port = int(bound[1])
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="status", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the port; pages being written are finished."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def listen_status(pages: Pages, listen: str, usual_port: int = 0) -> StatusServer | None:
    """Serve `pages` at `listen`: host:port, "auto" (loopback, `usual_port` or any free one), or "off" (None).

    Raises:
        InvalidInput: `listen` is none of these, or nothing can listen there.

    """
    if listen == OFF:
        return None
    if listen != AUTO:
        return _listening(pages, *_split(listen))
    try:
        return StatusServer(pages, LOOPBACK, usual_port)
    except OSError:  # another process of this machine has the usual port; nobody named it, so it need not be that one
        return StatusServer(pages, LOOPBACK, 0)


def _listening(pages: Pages, host: str, port: int) -> StatusServer:
    try:
        return StatusServer(pages, host, port)
    except OSError as error:
        raise InvalidInput(f"cannot listen on {host}:{port} for metrics and probes: {error}") from error


def _split(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise InvalidInput(f"--metrics-listen {listen!r} is not valid: write host:port, {AUTO} or {OFF}")
    return host.strip("[]"), int(port)


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Not `http.server.HTTPServer`: that one asks the name service who it is before it listens."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, pages: Pages, host: str, port: int) -> None:
        self.pages = pages
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._places = threading.Semaphore(MAX_CONNECTIONS)
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as its base declares it
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002
        log.debug("a status connection broke")


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of a known path, one per connection."""

    timeout = READ_TIMEOUT_S
    server: _Server
    server_version = "expertmesh"
    sys_version = ""

    def do_GET(self) -> None:
        page = self._page()
        self._head(page)
        self.wfile.write(page.body)

    def do_HEAD(self) -> None:
        self._head(self._page())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by its base
        log.debug(format, *args)

    def _page(self) -> Page:
        make = self.server.pages.get(urlsplit(self.path).path)
        if make is None:
            return Page(404, f"there are: {' '.join(sorted(self.server.pages))}\n".encode(), "text/plain")
        try:
            return make(self.headers.get("Accept", ""))
        except Exception:  # the edge: whoever looks must learn that looking failed
            log.exception("status page %s failed", self.path)
            return Page(500, b"this page failed; the log says why\n", "text/plain")

    def _head(self, page: Page) -> None:
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
