"""Prometheus metrics, read at scrape time from counters that exist anyway: the hot path knows nothing of this."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from expertmesh.version import __version__

__all__ = ["Exposition", "Histogram", "Source", "counter", "gauge", "histogram"]

log = logging.getLogger(__name__)

PREFIX = "expertmesh_"

Source = Callable[[], Iterable[Metric]]
"""Makes metric families from what a part of the process has counted. Called on the thread of the scrape."""

Labels = Sequence[str]
Histogram = tuple[Sequence[float], Sequence[int], float]
"""Upper bounds, a count per bucket and one above the last bound (not cumulated), and the sum of what was observed."""


def counter(name: str, text: str, labels: Labels, samples: Iterable[tuple[Labels, float]]) -> Metric:
    """A total since the start; its series end in `_total`."""
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def gauge(name: str, text: str, labels: Labels, samples: Iterable[tuple[Labels, float]]) -> Metric:
    """A value as of now."""
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def histogram(name: str, text: str, labels: Labels, samples: Iterable[tuple[Labels, Histogram]]) -> Metric:
    """Counts by upper bound; `_sum` and `_count` come with it."""
    family = HistogramMetricFamily(PREFIX + name, text, labels=labels)
    for values, (bounds, counts, total) in samples:
        running, buckets = 0, []
        for bound, count in zip((*map(str, map(float, bounds)), "+Inf"), counts, strict=True):
            running += count
            buckets.append((bound, float(running)))
        family.add_metric(values, buckets, total)
    return family


class Exposition(Collector):
    """All metrics of one process. `part` is controller, gateway or worker."""

    def __init__(self, part: str, sources: Iterable[Source]) -> None:
        self._part, self._sources = part, tuple(sources)
        self._failures = 0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)  # memory, CPU time and open files, under their usual names

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type, in the format that the scraper accepts."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        yield gauge(
            "build_info",
            "Which version runs here as which part.",
            ("version", "part"),
            [((__version__, self._part), 1)],
        )
        for source in self._sources:
            yield from self._read(source)
        text = "Parts that could not be read for a scrape; the log says why."
        yield counter("scrape_failures", text, (), [((), self._failures)])

    def _read(self, source: Source) -> list[Metric]:
        """One part that fails must not hide all others."""
        try:
            return list(source())
        except Exception:
            self._failures += 1
            log.exception("metrics of one part could not be read")
            return []
