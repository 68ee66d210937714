"""What a running task knows of the request that it serves: the id that its log lines carry, and the caller's trace."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Span

__all__ = [
    "TRACEPARENT",
    "caller_traceparent",
    "current_span",
    "enter_request",
    "enter_span",
    "enter_trace",
    "request_id",
]

TRACEPARENT = "traceparent"
_MOST_CHARACTERS = 128

_request_id: ContextVar[str] = ContextVar("expertmesh_request_id", default="")
_span: ContextVar[Span | None] = ContextVar("expertmesh_span", default=None)
_traceparent: ContextVar[str] = ContextVar("expertmesh_traceparent", default="")


def request_id() -> str:
    """Of the request that this task serves; "" outside of one."""
    return _request_id.get()


def enter_request(name: str) -> None:
    """From here on, this task's log lines carry the request id `name`; "" ends that.

    Callers choose ids: one that could break a line is written so that it cannot.
    """
    _request_id.set((name if name.isprintable() else ascii(name))[:_MOST_CHARACTERS])


def caller_traceparent() -> str:
    """The W3C trace context that the caller sent; "" without one."""
    return _traceparent.get()


def enter_trace(headers: Iterable[tuple[str, str | bytes]]) -> None:
    """Remember the `traceparent` of a call's metadata or headers for the rest of this task. A door calls it first."""
    found = next((value for key, value in headers if key.lower() == TRACEPARENT), "")
    _traceparent.set(found if isinstance(found, str) else "")


def current_span() -> Span | None:
    """The span of the request that this task serves, if it is traced."""
    return _span.get()


def enter_span(span: Span | None) -> None:
    """From here on, what this task submits belongs to `span`; None ends that."""
    _span.set(span)
