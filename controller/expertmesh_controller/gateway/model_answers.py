"""The answers of one model: checked requests into its engine, events out of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from expertmesh_api.v1 import inference_pb2
from expertmesh_common.clock import Clock
from expertmesh_controller.gateway.answering import Caller
from expertmesh_controller.gateway.answers import finished, token_event
from expertmesh_controller.gateway.batching.engine import Engine
from expertmesh_controller.gateway.batching.jobs import Ended, Facts, Failed, Picked, Reason, Request, Scoring, Ticket
from expertmesh_controller.gateway.requests import parse_generate, parse_tokenize
from expertmesh_controller.gateway.sampling.choosing import Choice
from expertmesh_controller.gateway.scoring import ScoreText, parse_score, read_choices, score_response
from expertmesh_controller.gateway.superseding import Generations
from expertmesh_controller.gateway.text.codec import TextCodec
from expertmesh_controller.gateway.text.streaming import AnswerText

__all__ = ["ModelAnswers", "ServedFacts"]

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
    numerics: str = "exact"

    @property
    def fingerprint(self) -> str:
        """What answers depend on beside the request, the same wherever the same is served."""
        return f"em_{self.bundle_digest[:12]}_{self.precision}_{self.numerics}"


class ModelAnswers:
    """`Answering` for one model, which is not checked again: `ServedModels` picked it.

    Events of a slow reader wait in its ticket; neither the engine nor other readers wait for it.
    """

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
        self.served = served
        self._engine, self._codec, self._clock = engine, codec, clock
        self._generations = Generations(engine)
        self._default_deadline_s, self._ready = default_deadline_s, ready

    async def generate(
        self,
        request: inference_pb2.GenerateRequest,
        deadline_s: float | None,
        caller: Caller,
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        """See `Answering.generate`."""
        parsed = await self._parse(request, self._deadline(deadline_s))
        answer = AnswerText(self._codec.detokeniser(), parsed.sampling.stop)
        answer.replay(parsed.resumed_ids)
        if answer.stopped or len(parsed.resumed_ids) >= parsed.max_tokens:
            reason = Reason.STOP if answer.stopped else Reason.LENGTH
            facts = Facts(self._clock.monotonic())
            yield self._finished(parsed, reason, answer, facts, len(parsed.resumed_ids))
            return
        # The call's own id: of the answers to one request over HTTP, each has another one.
        with self._generations.submitted(parsed, caller.name, request.request_id) as ticket:
            async for response in self._stream(parsed, answer, ticket):
                yield response

    async def tokenize(self, request: inference_pb2.TokenizeRequest) -> inference_pb2.TokenizeResponse:
        """See `Answering.tokenize`."""
        served = self.served
        ids = await asyncio.to_thread(parse_tokenize, request, self._codec, served.vocabulary, served.context_tokens)
        text_bytes = [self._codec.text_bytes(i) for i in ids]
        return inference_pb2.TokenizeResponse(ids=ids, pieces=self._codec.pieces(ids), text_bytes=text_bytes)

    async def score(
        self, request: inference_pb2.ScoreRequest, deadline_s: float | None, caller: Caller
    ) -> inference_pb2.ScoreResponse:
        """See `Answering.score`."""
        served, deadline = self.served, self._deadline(deadline_s)
        arguments = (request, self._codec, served.vocabulary, served.context_tokens)
        text = await asyncio.to_thread(parse_score, *arguments)
        choices, facts = await self._choices(text, deadline, caller)
        now = self._clock.monotonic()
        return score_response(text, choices, self._codec, facts, now=now, by=(served.precision, served.numerics))

    def listing(self) -> inference_pb2.ServedModel:
        """What `ListModels` says of this model."""
        served = self.served
        return inference_pb2.ServedModel(
            name=served.name,
            family=served.family,
            precision=served.precision,
            context_tokens=served.context_tokens,
            bundle_digest=served.bundle_digest,
            ready=self._ready(),
        )

    async def _choices(self, text: ScoreText, deadline: float, caller: Caller) -> tuple[list[Choice], Facts]:
        whole = text.whole
        if text.first >= len(whole):  # one token with nothing before it: there is nothing to ask the model
            return [], Facts(self._clock.monotonic())
        ticket = self._engine.submit(Scoring(whole, text.first, deadline, text.top_logprobs), caller.name)
        try:
            return await read_choices(ticket), ticket.facts
        finally:
            self._engine.cancel(ticket)

    async def _stream(
        self, request: Request, answer: AnswerText, ticket: Ticket
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        count = len(request.resumed_ids)
        while True:
            event = await ticket.events.get()
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Ended):
                reason = event.reason
                break
            assert isinstance(event, Picked), "an answer is generated, not scored"
            count += 1
            yield token_event(event, answer.feed(event.choice.token_id), self._codec.text_bytes)
            if answer.stopped:
                self._engine.cancel(ticket)
                reason = Reason.STOP
                break
        yield self._finished(request, reason, answer, ticket.facts, count)

    async def _parse(self, message: inference_pb2.GenerateRequest, deadline: float) -> Request:
        served = self.served
        arguments = (message, self._codec, served.vocabulary, served.context_tokens, deadline)
        if message.ByteSize() > _LARGE_BYTES:
            return await asyncio.to_thread(parse_generate, *arguments)
        return parse_generate(*arguments)

    def _deadline(self, deadline_s: float | None) -> float:
        return self._clock.monotonic() + (self._default_deadline_s if deadline_s is None else deadline_s)

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
            precision=self.served.precision,
            numerics=self.served.numerics,
        )
