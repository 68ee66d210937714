"""What a worker shows of each expert, read at the moment of the scrape: rows, time, bytes, tier, waiting rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import Metric

from expertmesh_common.channel.frame import Request, model_key
from expertmesh_common.observability.exposition import counter, gauge
from expertmesh_worker.runtime.residents import ExpertName, Resident, Residents

__all__ = ["of_experts", "queued_rows", "tiers"]

EXPERT = ("model", "layer", "expert")
INSTANCE = (*EXPERT, "precision", "tier")
HOT, WARM = "hot", "warm"

Samples = list[tuple[tuple[str, ...], float]]


def of_experts(
    residents: Residents, fetched: Iterable[tuple[ExpertName, str]], waiting: Iterable[Request]
) -> Iterator[Metric]:
    """`fetched` are the experts in the cache with their precisions, `waiting` the frames that wait for a lane."""
    held = list(residents)
    yield from _of_instances(held)
    rows = queued_rows(waiting)
    text = "Rows that ask for the expert in frames that wait for a lane now."
    queued: Samples = [(_expert(r.name), float(rows[_on_wire(r.name)])) for r in held]
    yield gauge("expert_queue_rows", text, EXPERT, queued)
    found = tiers(((r.name, r.precision) for r in held), fetched)
    text = "1 in the tier in which the expert is here: hot is loaded, warm is in the cache on disk only."
    tier_of: Samples = [((*_expert(name), precision, tier), 1.0) for (name, precision), tier in found.items()]
    yield gauge("expert_tier", text, INSTANCE, tier_of)


def queued_rows(waiting: Iterable[Request]) -> Counter[tuple[int, int, int]]:
    """Rows by (model's number on the wire, layer, expert)."""
    return Counter((f.model, f.layer, expert) for f in waiting for expert in f.expert.tolist())


def tiers(
    held: Iterable[tuple[ExpertName, str]], fetched: Iterable[tuple[ExpertName, str]]
) -> dict[tuple[ExpertName, str], str]:
    """The best tier of every (expert, precision) that is here."""
    return dict.fromkeys(fetched, WARM) | dict.fromkeys(held, HOT)


def _of_instances(held: list[Resident]) -> Iterator[Metric]:
    def each(value: Callable[[Resident], float]) -> Samples:
        return [((*_expert(r.name), r.precision, HOT), value(r)) for r in held]

    yield counter("instance_rows", "Rows computed since it was loaded.", INSTANCE, each(lambda r: r.instance.rows))
    text = "Time spent computing them; divided by the rows it is the latency of one."
    yield counter("instance_compute_seconds", text, INSTANCE, each(lambda r: r.instance.busy_ms / 1e3))
    text = "What the instance counts against the budget."
    yield gauge("instance_resident_bytes", text, INSTANCE, each(lambda r: r.bytes))


def _expert(name: ExpertName) -> tuple[str, ...]:
    return name.model, str(name.layer), str(name.index)


def _on_wire(name: ExpertName) -> tuple[int, int, int]:
    return model_key(name.model), name.layer, name.index
