"""The expert channel over a blocking socket: unix, TCP or TLS."""

from __future__ import annotations

import socket

from expertmesh_common.channel.frame import Reply, Request, decode_reply, encode_request
from expertmesh_common.channel.framing import FrameSocket
from expertmesh_common.errors import CorruptData
from expertmesh_controller.gateway.dispatch.links.base import Link, LinkDown, LinkTimeout


class StreamLink(Link):
    """Owns an admitted connection (its ticket is accepted)."""

    def __init__(self, worker_id: str, transport: str, connection: socket.socket) -> None:
        super().__init__(worker_id, transport)
        self._frames = FrameSocket(connection)

    def post(self, request: Request, expires_at: float) -> None:
        try:
            self._frames.expire_at(expires_at)
            self.bytes_sent += self._frames.send(encode_request(request))
        except TimeoutError:
            raise LinkTimeout(f"worker {self.worker_id} did not take a request over {self.transport} in time") from None
        except OSError as error:
            raise LinkDown(f"{self.transport} link to worker {self.worker_id} failed: {error}") from error

    def take(self, expires_at: float) -> Reply:
        try:
            self._frames.expire_at(expires_at)
            data = self._frames.receive()
            if data is None:
                raise LinkDown(f"worker {self.worker_id} closed its {self.transport} link")
            self.bytes_received += len(data)
            return decode_reply(data)
        except TimeoutError:
            raise LinkTimeout(f"worker {self.worker_id} did not answer over {self.transport} in time") from None
        except (OSError, CorruptData) as error:
            raise LinkDown(f"{self.transport} link to worker {self.worker_id} failed: {error}") from error

    def close(self) -> None:
        self._frames.close()
