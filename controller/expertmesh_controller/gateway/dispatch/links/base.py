"""A link: how one engine thread asks one worker to run experts. At most one request is under way on it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from expertmesh_common.channel.frame import Reply, Request
from expertmesh_common.errors import Unavailable


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
