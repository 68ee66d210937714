"""The routes of the OpenAI door."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from typing import Any

from aiohttp import web

from expertmesh_api.v1 import inference_pb2
from expertmesh_common.errors import NotHere, Unavailable
from expertmesh_common.security import Security
from expertmesh_controller.gateway.answering import Answering
from expertmesh_controller.gateway.openai.answers import Piece
from expertmesh_controller.gateway.openai.asking import Ask, ask_chat, ask_completion
from expertmesh_controller.gateway.openai.failures import WrongParam
from expertmesh_controller.gateway.openai.guarding import STREAM, admitting, caller_of, request_id_of
from expertmesh_controller.gateway.openai.reading import read_chat, read_completion
from expertmesh_controller.gateway.openai.replying import Reply
from expertmesh_controller.gateway.openai.shapes import CHAT, COMPLETION, DONE, Chunks, Head, Shape, Whole, whole_body

__all__ = ["DEADLINE", "PREFIX", "openai_app"]

PREFIX = "/v1"
DEADLINE = "X-Deadline-Ms"
"""How long the client will wait for the whole answer; without it the gateway's default holds."""

BODY_BYTES = 8 * 2**20
BODY_S = 30.0
"""For a body to arrive."""
LARGE_BYTES = 64 * 1024
"""Longer bodies are read beside the event loop, so that other answers go on."""
STALL_S = 30.0
"""An answer whose reader takes nothing for so long is given up."""

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # proxies must not collect what is meant to flow
}

Pieces = AsyncGenerator[tuple[int, Piece], None]


def openai_app(answering: Answering, security: Security, *, stall_s: float = STALL_S) -> web.Application:
    """Everything under `/v1`, for whoever `security` lets infer."""
    app = web.Application(middlewares=[admitting(security)], client_max_size=BODY_BYTES)
    door = _Door(answering, stall_s)
    app.add_routes([
        web.get("/models", door.models),
        web.get("/models/{name:.+}", door.model),
        web.post("/completions", door.completions),
        web.post("/chat/completions", door.chat),
    ])  # fmt: skip
    app.on_cleanup.append(door.let_go)
    return app


class _Door:
    def __init__(self, answering: Answering, stall_s: float) -> None:
        self._answering, self._stall_s, self._started = answering, stall_s, int(time.time())

    async def let_go(self, _app: web.Application) -> None:
        """Hold no model any more: aiohttp remembers handlers of applications that have ended, for its whole process."""
        with contextlib.suppress(AttributeError):  # whoever stops a door may do it twice
            del self._answering

    async def models(self, _request: web.Request) -> web.Response:
        listed = (await self._answering.list_models()).models
        return web.json_response({"object": "list", "data": [self._model(model) for model in listed]})

    async def model(self, request: web.Request) -> web.Response:
        name, listed = request.match_info["name"], (await self._answering.list_models()).models
        for model in listed:
            if model.name == name:
                return web.json_response(self._model(model))
        raise NotHere(f"model {name[:128]!r} is not served here: {', '.join(m.name for m in listed) or 'none'} is")

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(
            request, COMPLETION, lambda body: ask_completion(read_completion(body), request_id_of(request))
        )

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, CHAT, lambda body: ask_chat(read_chat(body), request_id_of(request)))

    async def _answer(self, request: web.Request, shape: Shape, read: Callable[[bytes], Ask]) -> web.StreamResponse:
        deadline_s = _deadline_s(request)
        body = await _body(request)
        ask = await asyncio.to_thread(read, body) if len(body) > LARGE_BYTES else read(body)
        reply = Reply(ask, self._answering, caller_of(request), deadline_s)
        fingerprint = self._answering.fingerprint(ask.model)
        head = Head(f"{shape.prefix}-{uuid.uuid4().hex}", int(time.time()), ask.model, fingerprint)
        async with contextlib.aclosing(reply.pieces()) as pieces:
            if ask.stream:
                return await self._stream(request, Chunks(shape, head, usage=ask.usage_in_stream), pieces, reply)
            answers = [Whole() for _ in ask.calls]
            async for number, piece in pieces:
                answers[number].add(piece)
        with_logprobs = ask.top_logprobs is not None
        return web.json_response(whole_body(shape, head, answers, reply.usage, with_logprobs=with_logprobs))

    async def _stream(self, request: web.Request, chunks: Chunks, pieces: Pieces, reply: Reply) -> web.StreamResponse:
        """The status waits for the first piece: until then an error can still have its own."""
        first = await anext(pieces)
        stream = web.StreamResponse(headers=_STREAM_HEADERS)
        await stream.prepare(request)
        request[STREAM] = stream
        await self._write(request, stream, chunks.of(*first))
        async for number, piece in pieces:
            await self._write(request, stream, chunks.of(number, piece))
        end = chunks.usage(reply.usage) + DONE if chunks.with_usage else DONE
        await self._write(request, stream, end)
        return stream

    async def _write(self, request: web.Request, stream: web.StreamResponse, data: bytes) -> None:
        """Send; a reader who takes nothing is cut off, because what it has not read is kept in memory."""
        if not data:
            return
        try:
            async with asyncio.timeout(self._stall_s):
                await stream.write(data)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise Unavailable(f"the reader took nothing for {self._stall_s:g} s") from None

    def _model(self, model: inference_pb2.ServedModel) -> dict[str, Any]:
        """OpenAI's four fields, and what else a client may want to know."""
        return {
            "id": model.name,
            "object": "model",
            "created": self._started,
            "owned_by": "expertmesh",
            "family": model.family,
            "precision": model.precision,
            "context_tokens": model.context_tokens,
            "ready": model.ready,
        }


async def _body(request: web.Request) -> bytes:
    if request.content_type != "application/json":
        sent = request.headers.get("Content-Type", "none")[:128]
        raise WrongParam(f"Content-Type is {sent}: send application/json", None, code="unsupported_media", status=415)
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise WrongParam("Content-Encoding: send the body plain", None, code="unsupported_media", status=415)
    try:
        async with asyncio.timeout(BODY_S):
            return await request.read()
    except TimeoutError:
        late = f"the body did not arrive within {BODY_S:g} s"
        raise WrongParam(late, None, code="request_timeout", status=408) from None


def _deadline_s(request: web.Request) -> float | None:
    sent = request.headers.get(DEADLINE)
    if sent is None:
        return None
    try:
        deadline_ms = float(sent)
    except ValueError:
        deadline_ms = math.nan
    if not 0 < deadline_ms < math.inf:
        raise WrongParam(f"header {DEADLINE} is {sent[:64]!r}: it must be milliseconds, more than 0", DEADLINE)
    return deadline_ms / 1000
