"""Experts in the gateway's own process."""

from __future__ import annotations

from expertmesh_common.channel.frame import Reply, Request
from expertmesh_common.channel.host import ExpertHost
from expertmesh_controller.gateway.dispatch.links.base import Link, LinkDown


class LocalLink(Link):
    """Executes in the calling thread, when the reply is taken."""

    local = True

    def __init__(self, worker_id: str, host: ExpertHost) -> None:
        super().__init__(worker_id, "local")
        self._host = host
        self._request: Request | None = None

    def post(self, request: Request, expires_at: float) -> None:  # noqa: ARG002 - nothing to wait for
        self.frames += 1
        self._request = request

    def take(self, expires_at: float) -> Reply:  # noqa: ARG002 - nothing to wait for
        request, self._request = self._request, None
        if request is None:
            raise LinkDown(f"local link {self.worker_id} has no request under way")
        return self._host.execute(request)

    def close(self) -> None:
        self._request = None
