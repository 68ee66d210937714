"""A real gRPC server on a unix socket whose answers are scripted: one behaviour per call of Generate."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Self

import grpc
import grpc.aio

from expertmesh_api.v1 import inference_pb2 as pb
from expertmesh_api.v1 import inference_pb2_grpc

WORDS = ("The", " capital", " is", " Paris", ".", " It", " shines")

_numbers = itertools.count()

Behaviour = Callable[[pb.GenerateRequest, grpc.aio.ServicerContext], AsyncIterator[pb.GenerateResponse]]


def token(position: int) -> pb.GenerateResponse:
    return pb.GenerateResponse(token=pb.Token(position=position, id=100 + position, text=WORDS[position]))


def finished(tail: str = "") -> pb.GenerateResponse:
    return pb.GenerateResponse(
        finished=pb.Finished(
            reason=pb.FINISH_REASON_STOP, text_tail=tail, prompt_tokens=3, completion_tokens=len(WORDS), ttft_ms=12.5,
            precision="fp32", numerics="exact", active_share=0.75,
        )
    )  # fmt: skip


async def whole(request: pb.GenerateRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[pb.GenerateResponse]:
    for position in range(len(request.resume_token_ids), len(WORDS)):
        yield token(position)
    yield finished()


def breaks_after(count: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, retry_after_ms: int = 0) -> Behaviour:
    """Sends `count` tokens from where the request resumes, then fails."""

    async def behave(
        request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        start = len(request.resume_token_ids)
        for position in range(start, start + count):
            yield token(position)
        if retry_after_ms:
            context.set_trailing_metadata((("retry-after-ms", str(retry_after_ms)),))
        await context.abort(code, "scripted failure")

    return behave


class ScriptedMesh(inference_pb2_grpc.InferenceServicer):
    """Runs in its own thread and loop, as another process would; the last behaviour repeats."""

    def __init__(self, folder: Path, script: Sequence[Behaviour]) -> None:
        self.address = f"unix:{folder}/mesh-{next(_numbers)}.sock"
        self.requests: list[pb.GenerateRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.texts: list[str] = []
        self.failing: list[tuple[grpc.StatusCode, int]] = []  # what the next calls of Tokenize fail with
        self._script = list(script)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        behave = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        async for response in behave(request, context):
            yield response

    async def Tokenize(self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext) -> pb.TokenizeResponse:
        if request.text == "refuse":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "text is not allowed")
        if self.failing:
            code, retry_after_ms = self.failing.pop(0)
            context.set_trailing_metadata((("retry-after-ms", str(retry_after_ms)),))
            await context.abort(code, "scripted failure")
        self.texts.append(request.text)
        return pb.TokenizeResponse(ids=range(len(request.text)), pieces=list(request.text))

    async def Score(self, request: pb.ScoreRequest, context: grpc.aio.ServicerContext) -> pb.ScoreResponse:
        first = pb.ScoredToken(id=1, piece="a")
        second = pb.ScoredToken(id=2, piece="b", logprob=-0.5, top_logprobs=[pb.TopLogprob(id=2, logprob=-0.5)])
        return pb.ScoreResponse(
            tokens=[first, second], total_logprob=-0.5, precision="fp32", numerics="exact", active_share=0.75
        )

    async def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[pb.ServedModel(name="tiny", precision="fp32", ready=True)])

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(self, *error: object) -> None:
        self._run(self._server.stop(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: object) -> object:
        done: Future = asyncio.run_coroutine_threadsafe(work, self._loop)  # type: ignore[arg-type]
        return done.result(10)

    async def _start(self) -> None:
        self._server = grpc.aio.server()
        inference_pb2_grpc.add_InferenceServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.address)
        await self._server.start()
