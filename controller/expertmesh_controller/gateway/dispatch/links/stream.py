"""The expert channel over a blocking socket: unix, TCP or TLS."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from expertmesh_common.channel.framing import FrameSocket
from expertmesh_common.channel.layout import Chunk
from expertmesh_common.errors import CorruptData
from expertmesh_controller.gateway.dispatch.links.base import FramedLink, LinkDown, LinkTimeout


class StreamLink(FramedLink):
    """Owns an admitted connection (its ticket is accepted); polls it for `spin_us` before it sleeps for a reply."""

    def __init__(self, worker_id: str, transport: str, connection: socket.socket, spin_us: int = 0) -> None:
        super().__init__(worker_id, transport)
        self._frames = FrameSocket(connection, spin_us=spin_us)

    def send(self, frame: Sequence[Chunk], expires_at: float) -> None:
        try:
            self._frames.expire_at(expires_at)
            self.bytes_sent += self._frames.send(frame)
            self.frames += 1
        except TimeoutError:
            raise LinkTimeout(f"worker {self.worker_id} did not take a request over {self.transport} in time") from None
        except OSError as error:
            raise self.failed(error) from error

    def receive(self, expires_at: float) -> memoryview:
        try:
            self._frames.expire_at(expires_at)
            data = self._frames.receive()
        except TimeoutError:
            raise LinkTimeout(f"worker {self.worker_id} did not answer over {self.transport} in time") from None
        except (OSError, CorruptData) as error:
            raise self.failed(error) from error
        if data is None:
            raise LinkDown(f"worker {self.worker_id} closed its {self.transport} link")
        self.bytes_received += len(data)
        return data

    def close(self) -> None:
        self._frames.close()
