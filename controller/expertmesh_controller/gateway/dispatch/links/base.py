"""A link: how one engine thread asks one worker to run experts. At most one request is under way on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from expertmesh_common.channel.frame import Reply, Request, decode_reply, encode_request
from expertmesh_common.channel.layout import Chunk
from expertmesh_common.errors import CorruptData, Unavailable


class LinkDown(Unavailable):
    """The link failed; whether the worker executed the request is unknown. It must be closed."""


class LinkTimeout(LinkDown):
    """No answer came in time. The link must be closed: the answer may still come."""


class Link(ABC):
    """Post a request, then take its reply; both in the same thread.

    `local` links execute in `take`, so a caller takes from them while remote workers are busy.
    """

    local = False

    def __init__(self, worker_id: str, transport: str) -> None:
        self.worker_id = worker_id
        self.transport = transport
        self.frames = 0
        self.bytes_sent = 0
        self.bytes_received = 0

    @abstractmethod
    def post(self, request: Request, expires_at: float) -> None:
        """Send the request, giving up at `expires_at` (monotonic seconds).

        Raises:
            LinkDown: the link failed; LinkTimeout: it did not take the request in time.

        """

    @abstractmethod
    def take(self, expires_at: float) -> Reply:
        """The reply to the request posted last, valid until the next `take`.

        Raises:
            LinkDown: the link failed or sent what is no reply; LinkTimeout: nothing came until `expires_at`.

        """

    @abstractmethod
    def close(self) -> None:
        """Release what the link holds. May be called again."""


class FramedLink(Link):
    """A link to another process: requests and replies travel as frames."""

    def post(self, request: Request, expires_at: float) -> None:
        self.send(encode_request(request), expires_at)

    def take(self, expires_at: float) -> Reply:
        return self.decode(self.receive(expires_at))

    def decode(self, frame: memoryview) -> Reply:
        """What `receive` brought, as a reply over its memory.

        Raises:
            LinkDown: it is none.

        """
        try:
            return decode_reply(frame)
        except CorruptData as error:
            raise self.failed(error) from error

    def failed(self, error: Exception | str) -> LinkDown:
        """The error that says that this link failed, and why."""
        return LinkDown(f"{self.transport} link to worker {self.worker_id} failed: {error}")

    @abstractmethod
    def send(self, frame: Sequence[Chunk], expires_at: float) -> None:
        """Send a whole request frame, given in pieces. Raises as `post`."""

    @abstractmethod
    def receive(self, expires_at: float) -> memoryview:
        """The whole frame that answers the one sent last, valid until the next call. Raises as `take`."""
