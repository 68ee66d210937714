"""Metrics of a gateway: requests, queues and rows per model, experts and links."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric

from expertmesh_common.observability.exposition import counter, gauge, histogram
from expertmesh_controller.gateway.batching.admission import RefusalReason
from expertmesh_controller.gateway.batching.engine import Engine
from expertmesh_controller.gateway.batching.tally import TOKEN_BOUNDS_S, TTFT_BOUNDS_S
from expertmesh_controller.gateway.dispatch.links.ledger import LinkTotals
from expertmesh_controller.gateway.observing.answers import AnswerCounts

__all__ = ["ModelView", "of_models", "of_requests"]

MODEL = ("model",)
EXPERT = ("model", "layer", "expert")
LINK = ("model", "worker", "transport")

Samples = list[tuple[tuple[str, ...], float]]


@dataclass(frozen=True, slots=True)
class ModelView:
    """One served model as metrics see it: its engine, and what was counted by (layer, expert) and by link."""

    name: str
    engine: Engine
    rows: Mapping[tuple[int, int], int]
    retried_rows: int
    links: Sequence[LinkTotals]
    ready: bool


def of_requests(counts: AnswerCounts) -> Iterator[Metric]:
    """What came through the doors."""
    text = "Requests that have ended, by how: ok, cancelled, or the status that the caller got."
    yield counter("requests", text, ("model", "call", "outcome"), _copied(counts.outcomes))
    yield counter("tokens", "Tokens read in (prompt) and sent (completion).", ("model", "kind"), _copied(counts.tokens))


def of_models(views: Iterable[ModelView]) -> Iterator[Metric]:
    """What the engines and planes of all models have counted."""
    models = list(views)
    yield from _queues(models)
    yield from _latencies(models)
    yield from _experts(models)
    yield from _links(models)


def _queues(models: list[ModelView]) -> Iterator[Metric]:
    def each(value: Callable[[ModelView], float]) -> Samples:
        return [((m.name,), float(value(m))) for m in models]

    crowds = {m.name: m.engine.crowding for m in models}
    text = "1 while every expert has a live instance, as far as this gateway was told."
    yield gauge("model_ready", text, MODEL, each(lambda m: m.ready))
    yield gauge("queue_depth", "Requests that wait for a slot.", MODEL, each(lambda m: crowds[m.name].waiting))
    yield gauge("slots", "Answers that can be generated at once.", MODEL, each(lambda m: crowds[m.name].slots))
    yield gauge("slots_used", "Answers being read in or generated.", MODEL, each(lambda m: crowds[m.name].running))
    yield gauge("engine_beat_age_seconds", "Since the engine last turned.", MODEL, each(lambda m: m.engine.pulse.age_s))
    refused = [((m.name, why.value), float(m.engine.refused[why])) for m in models for why in RefusalReason]
    yield counter("rejected", "Requests that were not let in, by reason.", ("model", "reason"), refused)


def _latencies(models: list[ModelView]) -> Iterator[Metric]:
    totals = [(m.name, m.engine.tally.totals()) for m in models]
    first = [((name,), (TTFT_BOUNDS_S, t.first_token.counts, t.first_token.total_s)) for name, t in totals]
    text = "From admission to the first token, waiting included."
    yield histogram("time_to_first_token_seconds", text, MODEL, first)
    each = [((name,), (TOKEN_BOUNDS_S, t.token.counts, t.token.total_s)) for name, t in totals]
    yield histogram("time_per_output_token_seconds", "Between a token and the one before it.", MODEL, each)


def _experts(models: list[ModelView]) -> Iterator[Metric]:
    rows = [
        ((m.name, str(layer), str(index)), float(count)) for m in models for (layer, index), count in m.rows.items()
    ]
    text = "Rows that this gateway sent to the expert, whichever instance, or put through it itself."
    yield counter("expert_rows", text, EXPERT, rows)
    retried = [((m.name,), float(m.retried_rows)) for m in models]
    text = "Rows sent to an expert again, because the first instance asked did not answer."
    yield counter("retried_rows", text, MODEL, retried)


def _links(models: list[ModelView]) -> Iterator[Metric]:
    found = [(m.name, link) for m in models for link in m.links]

    def each(value: Callable[[LinkTotals], float]) -> Samples:
        return [((name, link.worker_id, link.transport), float(value(link))) for name, link in found]

    yield gauge("link_up", "Links that stand.", LINK, each(lambda link: link.up))
    yield counter("link_frames", "Request frames sent.", LINK, each(lambda link: link.frames))
    yield counter("link_sent_bytes", "Bytes of requests.", LINK, each(lambda link: link.bytes_sent))
    yield counter("link_received_bytes", "Bytes of replies.", LINK, each(lambda link: link.bytes_received))
    yield counter("link_failures", "Links that were given up.", LINK, each(lambda link: link.failures))


def _copied(counts: Mapping[tuple[str, ...], int]) -> Samples:
    return [(labels, float(count)) for labels, count in list(counts.items())]
