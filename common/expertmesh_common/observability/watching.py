"""What a process shows of itself while it runs: the status pages, and gRPC health that follows readiness."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from expertmesh_common.observability.checks import Check, judge
from expertmesh_common.observability.exposition import Exposition, Source
from expertmesh_common.observability.pulse import LOOP_STALL_S, Pulse, beating, stalled
from expertmesh_common.observability.status_server import Page, Pages, listen_status
from expertmesh_common.serving import Serving

__all__ = ["CONTROLLER_PORT", "Shown", "shown"]

log = logging.getLogger(__name__)

CONTROLLER_PORT = 7090
HEALTH_INTERVAL_S = 0.25


@dataclass(frozen=True, slots=True)
class Shown:
    """What there is to look at. `alive` and `ready` are for the probes, `sources` for metrics.

    `services` maps full gRPC service names to checks of their own, which their health follows; the process as a whole
    ("") follows `ready`.
    """

    part: str
    alive: Sequence[Check]
    ready: Sequence[Check]
    sources: Sequence[Source]
    services: Mapping[str, Callable[[], str | None]] = field(default_factory=dict)


@contextlib.asynccontextmanager
async def shown(what: Shown, serving: Serving, listen: str, usual_port: int = 0) -> AsyncIterator[str | None]:
    """Show it while the body runs; gives the address of the pages (None when `listen` is "off").

    Raises:
        InvalidInput: nothing can listen at `listen`.

    """
    pulse = Pulse()
    alive = (Check("event_loop", stalled(pulse, LOOP_STALL_S, "the event loop")), *what.alive)
    server = listen_status(_pages(what, alive), listen, usual_port)
    tasks = [asyncio.create_task(beating(pulse)), asyncio.create_task(_follow(what, serving))]
    try:
        if server is not None:
            log.info("metrics and probes at http://%s", server.address)
        yield None if server is None else server.address
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if server is not None:
            await asyncio.to_thread(server.stop)


def _pages(what: Shown, alive: Sequence[Check]) -> Pages:
    exposition = Exposition(what.part, what.sources)

    def metrics(accept: str) -> Page:
        body, content_type = exposition.render(accept)
        return Page(200, body, content_type)

    return {"/livez": _probe_page(alive), "/readyz": _probe_page(what.ready), "/metrics": metrics}


def _probe_page(checks: Sequence[Check]) -> Callable[[str], Page]:
    def page(_accept: str) -> Page:
        verdict = judge(checks)
        return Page(200 if verdict.ok else 503, verdict.to_json())

    return page


async def _follow(what: Shown, serving: Serving) -> None:
    """Tell the health service how it stands."""
    told: bool | None = None
    while True:
        verdict = judge(what.ready)
        now = {"": verdict.ok} | {name: judge([Check(name, probe)]).ok for name, probe in what.services.items()}
        for name, serves in now.items():  # each time: a server that starts says by itself that it serves
            await serving.set_serving(name, serves)
        if told != verdict.ok:
            wrong = "; ".join(reason for reason in verdict.found.values() if reason is not None)
            log.info("ready=%s %s", verdict.ok, wrong)
        told = verdict.ok
        await asyncio.sleep(HEALTH_INTERVAL_S)
