"""Spans of the engine: one per step that serves a traced request, and in it one per layer that was dispatched.

A step serves several requests. Its span is a child of the first of them that is traced and links to the others, so that
each dispatch is recorded once, and the trace of a request that runs alone is whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from expertmesh_common.observability.tracing import Tracing, Value
from expertmesh_controller.gateway.batching.forward import Experts
from expertmesh_controller.gateway.dispatch.links.ledger import LinkTotals
from expertmesh_controller.gateway.trunk.executor import Floats

if TYPE_CHECKING:
    from opentelemetry.trace import Span

__all__ = ["DispatchSpans", "TracedExperts", "moved"]


class TracedExperts(Experts, Protocol):
    """Experts that hand a trace on to the workers."""

    trace: str
    """The W3C traceparent of the call that is running, "" for none."""


class DispatchSpans:
    """`Experts` around others, whose links have moved `totals`.

    Used by the engine's thread alone; without a traced request it only hands on.
    """

    def __init__(self, experts: TracedExperts, totals: Callable[[], Sequence[LinkTotals]], tracing: Tracing) -> None:
        self._experts, self._totals, self._tracing = experts, totals, tracing
        self._step: Span | None = None

    @property
    def active(self) -> NDArray[Any]:
        """See `Experts.active`."""
        return self._experts.active

    def begin(self, rows: int, share: float) -> None:
        """See `Experts.begin`."""
        self._experts.begin(rows, share)

    @contextlib.contextmanager
    def step(self, traces: Sequence[Span | None], rows: int) -> Iterator[None]:
        """The span of one step of `rows` rows for requests with these spans (None: not traced)."""
        traced = [span for span in traces if span is not None]
        if not traced:
            yield
            return
        attributes: dict[str, Value] = {"expertmesh.rows": rows, "expertmesh.requests": len(traces)}
        self._step = step = self._tracing.start("expertmesh.step", traced[0], "internal", attributes, links=traced[1:])
        try:
            yield
        except Exception as error:
            self._tracing.failed(step, type(error).__name__)
            raise
        finally:
            self._step = None
            step.end()

    def run(self, layer: int, rows: Floats, deadline: float, patience_s: float) -> Floats:
        """See `Experts.run`."""
        step = self._step
        if step is None:
            return self._experts.run(layer, rows, deadline, patience_s)
        attributes: dict[str, Value] = {"expertmesh.layer": layer, "expertmesh.rows": len(rows)}
        span = self._tracing.start("expertmesh.dispatch", step, "client", attributes)
        before = self._totals()
        self._experts.trace = self._tracing.traceparent(span)
        try:
            return self._experts.run(layer, rows, deadline, patience_s)
        except Exception as error:
            self._tracing.failed(span, str(error))
            raise
        finally:
            self._experts.trace = ""
            span.set_attributes(moved(before, self._totals()))
            span.end()


def moved(before: Sequence[LinkTotals], after: Sequence[LinkTotals]) -> Mapping[str, Value]:
    """Attributes of what happened between two looks at the links: workers asked, frames, and bytes both ways."""
    known = {(link.worker_id, link.transport): link for link in before}
    nothing = LinkTotals("", "")
    pairs = [(known.get((link.worker_id, link.transport), nothing), link) for link in after]
    asked = [(old, new) for old, new in pairs if new.frames > old.frames]
    return {
        "expertmesh.workers": sorted({new.worker_id for _, new in asked}),
        "expertmesh.frames": sum(new.frames - old.frames for old, new in asked),
        "expertmesh.bytes_sent": sum(new.bytes_sent - old.bytes_sent for old, new in asked),
        "expertmesh.bytes_received": sum(new.bytes_received - old.bytes_received for old, new in asked),
    }
