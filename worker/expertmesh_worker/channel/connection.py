"""One admitted stream connection: frames in, frames out, until the peer or a drain ends it."""

from __future__ import annotations

import contextlib
import logging
import socket

import numpy as np

from expertmesh_common.channel.framing import FrameSocket
from expertmesh_common.channel.host import ExpertHost
from expertmesh_common.errors import CorruptData
from expertmesh_worker.channel.answering import Shortcut, answer, refuse

log = logging.getLogger(__name__)


class Connection:
    """Serves one peer in the calling thread; `drain` and `abort` may be called from another."""

    def __init__(self, frames: FrameSocket, host: ExpertHost, shortcut: Shortcut | None = None) -> None:
        self._frames, self._host, self._shortcut = frames, host, shortcut
        self._draining = False

    def run(self) -> None:
        """Answer frames until the peer closes, the connection fails, a frame is malformed, or a drain."""
        try:
            # The square of a huge, but finite row overflows: a reason to look closer, not to warn. Once, not per row.
            with np.errstate(over="ignore", invalid="ignore"):
                self._serve()
        except OSError as error:
            log.info("expert stream ended: %s", error)

    def _serve(self) -> None:
        while not self._draining and self._step():
            pass

    def _step(self) -> bool:
        """Answer one frame; whether another may follow."""
        try:
            data = self._frames.receive()
        except CorruptData as error:
            self._frames.send(refuse(error))
            return False
        if data is None:
            return False
        shortcut = self._shortcut
        known = None if shortcut is None else shortcut.answer(data)
        if known is not None:
            self._frames.send_whole(known)
            return True
        reply = answer(self._host, data)
        self._frames.send(reply.chunks)
        if reply.good and shortcut is not None:
            shortcut.learn(data)
        return not reply.last

    def drain(self) -> None:
        """Take no further frame: one that has arrived is finished, then the connection closes."""
        self._draining = True
        self._shut(socket.SHUT_RD)

    def abort(self) -> None:
        """End now."""
        self._shut(socket.SHUT_RDWR)

    def _shut(self, how: int) -> None:
        with contextlib.suppress(OSError):  # it may have ended by itself
            # The plain form also for TLS: that of SSLSocket drops the session, and a reply under way would go out bare.
            socket.socket.shutdown(self._frames.connection, how)
