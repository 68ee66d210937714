"""The `Inference` service: the door of the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc.aio

from expertmesh_api.v1 import inference_pb2, inference_pb2_grpc
from expertmesh_common.clock import Clock
from expertmesh_common.errors import NotHere
from expertmesh_controller.gateway.answers import finished, token_event
from expertmesh_controller.gateway.batching.engine import Engine
from expertmesh_controller.gateway.batching.jobs import Ended, Facts, Failed, Reason, Request
from expertmesh_controller.gateway.requests import parse_generate, parse_tokenize
from expertmesh_controller.gateway.text.codec import TextCodec
from expertmesh_controller.gateway.text.streaming import AnswerText

if TYPE_CHECKING:  # the class takes type arguments in its stubs only
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext

__all__ = ["InferenceService", "ServedFacts"]

_LARGE_BYTES = 16 * 1024
"""Longer requests are tokenised beside the event loop, so that other streams go on."""


@dataclass(frozen=True, slots=True)
class ServedFacts:
    """What this gateway serves, for checks and listings."""

    name: str
    family: str
    precision: str
    vocabulary: int
    context_tokens: int
    bundle_digest: str


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """Streams answers. Events of a slow reader wait in its ticket; neither the engine nor other readers wait for it."""

    def __init__(
        self,
        engine: Engine,
        codec: TextCodec,
        served: ServedFacts,
        clock: Clock,
        *,
        default_deadline_s: float,
        ready: Callable[[], bool],
    ) -> None:
        self._engine, self._codec, self._served, self._clock = engine, codec, served, clock
        self._default_deadline_s, self._ready = default_deadline_s, ready

    async def Generate(  # noqa: N802 - named by the protocol
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        """Raises what the edge maps: InvalidInput, NotHere, Exhausted, Unavailable, DeadlinePassed, CorruptData."""
        self._check_model(request.model)
        parsed = await self._parse(request, self._deadline(context))
        answer = AnswerText(self._codec.detokeniser(), parsed.sampling.stop)
        answer.replay(parsed.resumed_ids)
        if answer.stopped or len(parsed.resumed_ids) >= parsed.max_tokens:
            reason = Reason.STOP if answer.stopped else Reason.LENGTH
            facts = Facts(self._clock.monotonic())
            yield self._finished(parsed, reason, answer, facts, len(parsed.resumed_ids))
            return
        async for response in self._stream(parsed, answer, context):
            yield response

    async def Tokenize(  # noqa: N802 - named by the protocol
        self,
        request: inference_pb2.TokenizeRequest,
        context: Context,  # noqa: ARG002 - the signature of the protocol
    ) -> inference_pb2.TokenizeResponse:
        self._check_model(request.model)
        ids = await asyncio.to_thread(parse_tokenize, request, self._codec, self._served.context_tokens)
        return inference_pb2.TokenizeResponse(ids=ids, pieces=self._codec.pieces(ids))

    async def ListModels(  # noqa: N802 - named by the protocol
        self,
        request: inference_pb2.ListModelsRequest,  # noqa: ARG002 - the signature of the protocol
        context: Context,  # noqa: ARG002 - the signature of the protocol
    ) -> inference_pb2.ListModelsResponse:
        served = self._served
        model = inference_pb2.ServedModel(
            name=served.name,
            family=served.family,
            precision=served.precision,
            context_tokens=served.context_tokens,
            bundle_digest=served.bundle_digest,
            ready=self._ready(),
        )
        return inference_pb2.ListModelsResponse(models=[model])

    async def _stream(
        self, request: Request, answer: AnswerText, context: Context
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        ticket = self._engine.submit(request)
        # However the call ends (answer complete, client gone, deadline), the slot is given back.
        # The stub asks for an instance of its own callback class.
        context.add_done_callback(lambda _: self._engine.cancel(ticket))  # type: ignore[arg-type]
        count = len(request.resumed_ids)
        while True:
            event = await ticket.events.get()
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Ended):
                reason = event.reason
                break
            count += 1
            yield token_event(event, answer.feed(event.choice.token_id))
            if answer.stopped:
                self._engine.cancel(ticket)
                reason = Reason.STOP
                break
        yield self._finished(request, reason, answer, ticket.facts, count)

    async def _parse(self, message: inference_pb2.GenerateRequest, deadline: float) -> Request:
        served = self._served
        arguments = (message, self._codec, served.vocabulary, served.context_tokens, deadline)
        if message.ByteSize() > _LARGE_BYTES:
            return await asyncio.to_thread(parse_generate, *arguments)
        return parse_generate(*arguments)

    def _deadline(self, context: Context) -> float:
        remaining_s = context.time_remaining()
        return self._clock.monotonic() + (self._default_deadline_s if remaining_s is None else remaining_s)

    def _check_model(self, name: str) -> None:
        if name not in ("", self._served.name):
            raise NotHere(f"model {name[:128]!r} is not served here; this gateway serves {self._served.name}")

    def _finished(
        self, request: Request, reason: Reason, answer: AnswerText, facts: Facts, count: int
    ) -> inference_pb2.GenerateResponse:
        return finished(
            request,
            reason,
            facts,
            text_tail=answer.finish(),
            completion_tokens=count,
            now=self._clock.monotonic(),
            precision=self._served.precision,
        )
