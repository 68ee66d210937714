"""What a worker shows of itself: probes, metrics from the counters of its parts, and spans of traced frames."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import Metric

from expertmesh_common.bundle.blob_service import SERVICE_NAME as BLOBS
from expertmesh_common.channel.frame import Reply, Request, Status
from expertmesh_common.channel.host import ExpertHost
from expertmesh_common.channel.messages import SERVICE as EXPERTS
from expertmesh_common.channel.tracing import traceparent_of
from expertmesh_common.observability.checks import Check
from expertmesh_common.observability.exposition import counter, gauge
from expertmesh_common.observability.tracing import Tracing
from expertmesh_common.observability.watching import Shown
from expertmesh_worker.agent.fetched import FetchedExperts
from expertmesh_worker.agent.joining import Membership
from expertmesh_worker.artifacts.sources import Sources
from expertmesh_worker.observing_experts import of_experts
from expertmesh_worker.runtime.executing import Runtime
from expertmesh_worker.runtime.residents import Residents

__all__ = ["Parts", "TracedHost", "shows"]


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a worker that are looked at. `origin` is the controller's address, `cache` the folder of blobs."""

    residents: Residents
    runtime: Runtime
    sources: Sources
    membership: Membership
    fetched: FetchedExperts
    cache: Path
    origin: str
    lanes: int


def shows(parts: Parts) -> Shown:
    """A worker is ready while it is a member; it serves loaded experts, and blobs, before and after too."""
    joined = Check("joined", lambda: None if parts.membership.joined else f"not joined to {parts.origin}")
    return Shown(
        part="worker",
        alive=(),
        ready=(joined,),
        sources=(lambda: _of_worker(parts), lambda: _of_experts(parts), lambda: _of_blobs(parts)),
        services={EXPERTS: joined.probe, BLOBS: lambda: None},
    )


def _of_worker(parts: Parts) -> Iterator[Metric]:
    work, residents = parts.runtime.work, parts.residents
    yield gauge("worker_joined", "1 while this worker is a member.", (), _one(parts.membership.joined))
    yield counter("worker_frames", "Request frames executed.", (), _one(work.frames))
    yield counter("worker_rows", "Rows computed, once per expert that they went through.", (), _one(work.rows))
    text = "Frames that wait for a lane; expert_queue_rows tells whom they ask for."
    yield gauge("worker_queued_frames", text, (), _one(work.queued_frames))
    yield gauge("worker_lanes", "Frames that can be computed at once.", (), _one(parts.lanes))
    yield gauge("worker_budget_bytes", "Hard limit of resident expert bytes.", (), _one(residents.budget_bytes))
    yield gauge("worker_resident_bytes", "Bytes of experts loaded or being loaded.", (), _one(residents.used_bytes))
    yield counter("worker_loads", "Experts loaded.", (), _one(residents.loads))
    yield counter("worker_evictions", "Experts unloaded or replaced.", (), _one(residents.evictions))


def _of_experts(parts: Parts) -> Iterator[Metric]:
    yield from of_experts(parts.residents, parts.fetched, parts.runtime.waiting_frames)


def _of_blobs(parts: Parts) -> Iterator[Metric]:
    sizes = list(_sizes(parts.cache))
    yield gauge("worker_cache_bytes", "Bytes of blobs in the cache folder, partial ones too.", (), _one(sum(sizes)))
    yield gauge("worker_cache_blobs", "Files in the cache folder.", (), _one(len(sizes)))
    fetched = {"origin": 0, "peer": 0}
    for address, count in list(parts.sources.fetched_bytes.items()):
        fetched["origin" if address == parts.origin else "peer"] += count
    samples = [((source,), float(count)) for source, count in fetched.items()]
    yield counter("worker_fetched_bytes", "Blob bytes received.", ("source",), samples)


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            yield path.stat().st_size
        except FileNotFoundError:  # published or removed while we looked
            continue


def _one(value: float) -> list[tuple[tuple[str, ...], float]]:
    return [((), float(value))]


class TracedHost:
    """An expert host that records a span for every frame that brings a trace along."""

    def __init__(self, host: ExpertHost, tracing: Tracing, worker_id: str) -> None:
        self._host, self._tracing, self._worker_id = host, tracing, worker_id

    def execute(self, request: Request) -> Reply:
        parent = traceparent_of(request)
        if parent is None:
            return self._host.execute(request)
        start_ns = time.time_ns()
        reply = self._host.execute(request)
        attributes = {"expertmesh.layer": request.layer, "expertmesh.rows": len(request.rows)}
        attributes |= {"expertmesh.pairs": len(request.expert)}
        span = self._tracing.start(
            "expertmesh.execute",
            parent,
            "server",
            {**attributes, "expertmesh.worker": self._worker_id},
            start_ns=start_ns,
        )
        if reply.status is not Status.OK:
            self._tracing.failed(span, f"{reply.status.name} {reply.message}")
        span.end()
        return reply
