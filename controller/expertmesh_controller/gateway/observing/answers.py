"""Every request as an operator sees it: its id in the log, one line at its end, a count by outcome, a span."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field

from expertmesh_api.v1 import gating_pb2, inference_pb2
from expertmesh_common.errors import MeshError
from expertmesh_common.observability.request_context import caller_traceparent, enter_request, enter_span
from expertmesh_common.observability.tracing import Tracing
from expertmesh_controller.gateway.answering import Caller, Explaining

__all__ = ["AnswerCounts", "ObservedAnswering"]

log = logging.getLogger(__name__)

OK = "ok"
CANCELLED = "cancelled"
INTERNAL = "internal"
_MEASURED = ("prompt_tokens", "completion_tokens", "queue_ms", "ttft_ms")


@dataclass(slots=True)
class AnswerCounts:
    """Totals since the start. Outcomes are ok, cancelled, or the name of the status that the caller got."""

    outcomes: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """By (model, call, outcome)."""
    tokens: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """By (model, kind): `prompt` tokens that were read in, `completion` tokens that were sent."""


@dataclass(slots=True)
class _Seen:
    """What is known of one request so far."""

    call: str
    model: str
    caller: Caller
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish: str = ""
    queue_ms: float = 0.0
    ttft_ms: float = 0.0

    def take(self, response: inference_pb2.GenerateResponse) -> None:
        if response.WhichOneof("event") == "token":
            self.completion_tokens += 1
            return
        end = response.finished
        self.prompt_tokens, self.queue_ms, self.ttft_ms = end.prompt_tokens, end.queue_ms, end.ttft_ms
        self.finish = inference_pb2.FinishReason.Name(end.reason).removeprefix("FINISH_REASON_").lower()


class ObservedAnswering:
    """`Answering` around another one. `served_name` gives the name to count under: of a model that is served, or "".

    Nothing that a caller sends is counted by its own words, so that no caller can make metrics grow.
    """

    def __init__(self, inner: Explaining, served_name: Callable[[str], str], tracing: Tracing | None = None) -> None:
        self._inner, self._served_name, self._tracing = inner, served_name, tracing
        self.counts = AnswerCounts()

    async def generate(
        self, request: inference_pb2.GenerateRequest, deadline_s: float | None, caller: Caller
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        """See `Answering.generate`."""
        with self._observed("generate", request.model, caller) as seen:
            answer = self._inner.generate(request, deadline_s, caller)
            async with contextlib.aclosing(answer):
                async for response in answer:
                    seen.take(response)
                    yield response

    async def tokenize(self, request: inference_pb2.TokenizeRequest) -> inference_pb2.TokenizeResponse:
        """See `Answering.tokenize`. Counted, but not worth a line."""
        outcome = INTERNAL
        try:
            response = await self._inner.tokenize(request)
            outcome = OK
        except BaseException as error:
            outcome = outcome_of(error)
            raise
        finally:
            self.counts.outcomes[self._served_name(request.model), "tokenize", outcome] += 1
        return response

    async def score(
        self, request: inference_pb2.ScoreRequest, deadline_s: float | None, caller: Caller
    ) -> inference_pb2.ScoreResponse:
        """See `Answering.score`."""
        with self._observed("score", request.model, caller):
            return await self._inner.score(request, deadline_s, caller)

    async def explain_text(
        self, request: gating_pb2.ExplainTextRequest, deadline_s: float | None, caller: Caller
    ) -> gating_pb2.ExplainTextResponse:
        """See `Explaining.explain_text`."""
        with self._observed("explain", request.model, caller):
            return await self._inner.explain_text(request, deadline_s, caller)

    async def list_models(self) -> inference_pb2.ListModelsResponse:
        """See `Answering.list_models`."""
        return await self._inner.list_models()

    def fingerprint(self, model: str) -> str:
        """See `Answering.fingerprint`."""
        return self._inner.fingerprint(model)

    @contextlib.contextmanager
    def _observed(self, call: str, asked_model: str, caller: Caller) -> Iterator[_Seen]:
        seen, began = _Seen(call, self._served_name(asked_model), caller), time.monotonic()
        enter_request(caller.request_id)
        with self._span(seen):
            outcome = INTERNAL
            try:
                yield seen
                outcome = OK
            except BaseException as error:
                outcome = outcome_of(error)
                raise
            finally:
                self._count(seen, outcome)
                log.info("%s", _line(seen, outcome, time.monotonic() - began))
                enter_request("")

    def _count(self, seen: _Seen, outcome: str) -> None:
        self.counts.outcomes[seen.model, seen.call, outcome] += 1
        self.counts.tokens[seen.model, "prompt"] += seen.prompt_tokens
        self.counts.tokens[seen.model, "completion"] += seen.completion_tokens

    @contextlib.contextmanager
    def _span(self, seen: _Seen) -> Iterator[None]:
        """The root of the request's trace, or its part in the caller's."""
        tracing = self._tracing
        if tracing is None:
            yield
            return
        attributes = {"expertmesh.model": seen.model, "expertmesh.request_id": seen.caller.request_id}
        span = tracing.start(f"expertmesh.{seen.call}", caller_traceparent(), "server", attributes)
        enter_span(span if span.is_recording() else None)
        try:
            yield
        except BaseException as error:
            tracing.failed(span, outcome_of(error))
            raise
        finally:
            enter_span(None)
            span.set_attributes({f"expertmesh.{name}": getattr(seen, name) for name in _MEASURED})
            span.end()


def outcome_of(error: BaseException) -> str:
    """How a request that ended with an error is counted."""
    if isinstance(error, MeshError):
        return error.status.name.lower()
    return CANCELLED if isinstance(error, (asyncio.CancelledError, GeneratorExit)) else INTERNAL


def _line(seen: _Seen, outcome: str, took_s: float) -> str:
    """The line in the log when a request has ended: figures and names, nothing of its content."""
    facts = f"{seen.call} {outcome} model={seen.model or '?'} caller={seen.caller.name} took_ms={1000 * took_s:.0f}"
    if seen.call != "generate":
        return facts
    end = f" finish={seen.finish} queue_ms={seen.queue_ms:.0f} ttft_ms={seen.ttft_ms:.0f}" if seen.finish else ""
    return f"{facts} prompt_tokens={seen.prompt_tokens} completion_tokens={seen.completion_tokens}{end}"
