"""The expert channel over sockets: unix on one host, TCP (with TLS) between hosts; a blocking thread per caller."""

from __future__ import annotations

import logging
import socket
import ssl
import tempfile
import threading
import time
from pathlib import Path

from expertmesh_api.v1 import common_pb2
from expertmesh_common.channel.frame import MAX_FRAME_BYTES
from expertmesh_common.channel.framing import FrameSocket
from expertmesh_common.channel.handshake import answer as answer_handshake
from expertmesh_common.channel.handshake import read_ticket
from expertmesh_common.channel.host import ExpertHost
from expertmesh_common.errors import InvalidInput, MeshError
from expertmesh_common.socket_folders import socket_root
from expertmesh_worker.channel.answering import Shortcut
from expertmesh_worker.channel.connection import Connection
from expertmesh_worker.channel.tickets import Tickets

log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 256
ACCEPT_PAUSE_S = 0.1


class StreamServer:
    """Listens where it is told, admits callers by ticket, serves frames until stopped.

    After each answer a plain stream is polled for `spin_us` before its thread sleeps.
    """

    def __init__(
        self,
        host: ExpertHost,
        tickets: Tickets,
        tls: ssl.SSLContext | None = None,
        limit: int = MAX_FRAME_BYTES,
        *,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
        shortcut: Shortcut | None = None,
        spin_us: int = 0,
    ) -> None:
        self._shortcut, self._spin_us = shortcut, spin_us
        self._host, self._tickets, self._tls, self._limit = host, tickets, tls, limit
        self._handshake_timeout_s = handshake_timeout_s
        self._listeners: list[socket.socket] = []
        self._folders: list[tempfile.TemporaryDirectory[str]] = []
        self._connections: dict[threading.Thread, Connection | None] = {}
        self._holders: dict[threading.Thread, str] = {}
        self._ended: set[str] = set()
        self._lock = threading.Lock()
        self._draining = False

    def listen_unix(self) -> common_pb2.Endpoint:
        """A socket of mode 0600 in a private folder; for callers of this host and user."""
        folder = tempfile.TemporaryDirectory(prefix="expertmesh-", dir=socket_root())
        self._folders.append(folder)
        path = Path(folder.name) / "experts.sock"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        path.chmod(0o600)
        self._listen(listener, None)
        return common_pb2.Endpoint(transport="unix", address=str(path))

    def listen_tcp(self, host: str, port: int = 0, advertise: str | None = None) -> common_pb2.Endpoint:
        """A TCP port (0: any free one), under TLS if the server has a context; callers are told `advertise`:port.

        Raises:
            InvalidInput: nothing can listen there.

        """
        try:
            listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            raise InvalidInput(f"cannot listen on {host}:{port} for expert streams: {error}") from error
        self._listen(listener, self._tls)
        return common_pb2.Endpoint(transport="tcp", address=f"{advertise or host}:{listener.getsockname()[1]}")

    def stop(self, grace_s: float = 5.0) -> None:
        """Refuse new connections, let frames in flight finish for up to `grace_s` seconds, then close everything."""
        with self._lock:
            self._draining = True
            connections = dict(self._connections)
        for listener in self._listeners:
            _shut(listener)
        for connection in connections.values():
            if connection is not None:
                connection.drain()
        end = time.monotonic() + grace_s
        for thread in connections:
            thread.join(max(0.0, end - time.monotonic()))
        for connection in connections.values():
            if connection is not None:
                connection.abort()
        for folder in self._folders:
            folder.cleanup()

    def end(self, token_ids: frozenset[str]) -> None:
        """Cut the connections of callers whose tokens were taken back."""
        with self._lock:
            self._ended |= token_ids
            cut = [self._connections.get(thread) for thread, holder in self._holders.items() if holder in token_ids]
        for connection in cut:
            if connection is not None:
                connection.abort()

    def _listen(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        listener.listen(64)
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(listener, tls), name="expert-accept", daemon=True).start()

    def _accept(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        with listener:
            while True:
                try:
                    raw, _ = listener.accept()
                except OSError as error:
                    if self._draining:  # shut down by stop()
                        return
                    # Out of descriptors, or a caller that hung up: the next one may fare better.
                    log.warning("an expert stream could not be accepted: %s", error)
                    time.sleep(ACCEPT_PAUSE_S)
                    continue
                self._admit(raw, tls)

    def _admit(self, raw: socket.socket, tls: ssl.SSLContext | None) -> None:
        thread = threading.Thread(target=self._serve, args=(raw, tls), name="expert-stream", daemon=True)
        with self._lock:
            full = self._draining or len(self._connections) >= MAX_CONNECTIONS
            if not full:
                self._connections[thread] = None
        if full:
            raw.close()
        else:
            thread.start()

    def _serve(self, raw: socket.socket, tls: ssl.SSLContext | None) -> None:
        try:
            raw.settimeout(self._handshake_timeout_s)
            with raw if tls is None else tls.wrap_socket(raw, server_side=True) as stream:
                holder = self._handshake(stream)
                if holder is not None:
                    stream.settimeout(None)
                    frames = FrameSocket(stream, self._limit, spin_us=self._spin_us)
                    self._run(Connection(frames, self._host, self._shortcut), holder)
        except (OSError, MeshError) as error:
            log.warning("expert stream refused in its handshake: %s", error)
        finally:
            raw.close()
            with self._lock:
                self._connections.pop(threading.current_thread(), None)
                self._holders.pop(threading.current_thread(), None)

    def _handshake(self, stream: socket.socket) -> str | None:
        """The id of the caller's token, None if its ticket is not good."""
        holder = self._tickets.redeem(read_ticket(stream))
        answer_handshake(stream, holder is not None)
        if holder is None:
            log.warning("expert stream refused: its ticket is unknown, used or too old")
        return holder

    def _run(self, connection: Connection, holder: str) -> None:
        with self._lock:
            self._connections[threading.current_thread()] = connection
            self._holders[threading.current_thread()] = holder
            over = self._draining or holder in self._ended
        if not over:
            connection.run()


def _shut(listener: socket.socket) -> None:
    """Wake the thread in accept()."""
    try:
        listener.shutdown(socket.SHUT_RDWR)
    except OSError:  # some systems refuse this on a listener; closing wakes accept there
        listener.close()
