"""A stream that is resumed here while its older half still runs: the newer one wins, the older computes for nobody."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import grpc

from expertmesh_common.errors import MeshError
from expertmesh_controller.gateway.batching.engine import Engine
from expertmesh_controller.gateway.batching.jobs import Request, Ticket

__all__ = ["Generations", "Superseded"]

Key = tuple[str, str, Request]


class Superseded(MeshError):
    """The same request came once more; whoever sent it reads the newer answer."""

    status = grpc.StatusCode.ABORTED


class Generations:
    """The answers that one engine generates now. Used on the engine's event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._running: dict[Key, Ticket] = {}

    @contextlib.contextmanager
    def submitted(self, request: Request, client: str, request_id: str) -> Iterator[Ticket]:
        """The ticket of a submitted request, whose slot is given back however the block ends.

        An older one of the same client, id and content ends with `Superseded`, and its place is free for this one.
        Requests that share no more than an id have nothing to do with each other, and those without one never have.

        Raises:
            Exhausted, Unavailable: see `Engine.submit`.

        """
        # A resumed request differs in what was received meanwhile, and in the time that is left.
        key = (client, request_id, replace(request, deadline=0.0, resumed_ids=()))
        older = self._running.pop(key, None) if request_id else None
        if older is not None:
            self._engine.end(older, Superseded(f"request {request_id[:128]} was sent again: read that answer"))
        ticket = self._running[key] = self._engine.submit(request, client)
        try:
            yield ticket
        finally:
            self._engine.cancel(ticket)
            if self._running.get(key) is ticket:
                del self._running[key]
