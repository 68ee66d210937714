"""The `Inference` service: the gRPC door of the gateway."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc.aio

from expertmesh_api.v1 import inference_pb2, inference_pb2_grpc
from expertmesh_common.access.identity import caller_name
from expertmesh_common.observability.request_context import enter_trace
from expertmesh_controller.gateway.answering import Answering, Caller

if TYPE_CHECKING:  # the class takes type arguments in its stubs only
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext

__all__ = ["InferenceService"]

ANSWER_S = 0.1
"""A refusal leaves this long before the caller's deadline, so that its reason arrives and not only that it is late."""


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """Maps calls onto `Answering`; the edge maps its errors to statuses."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    async def Generate(  # noqa: N802 - named by the protocol
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        caller = Caller(caller_name(), request.request_id or uuid.uuid4().hex)
        enter_trace(context.invocation_metadata() or ())
        answer = self._answering.generate(request, time_left_s(context), caller)
        async with contextlib.aclosing(answer):  # a client that is gone frees its slot
            async for response in answer:
                yield response

    async def Tokenize(  # noqa: N802 - named by the protocol
        self,
        request: inference_pb2.TokenizeRequest,
        context: Context,  # noqa: ARG002 - the signature of the protocol
    ) -> inference_pb2.TokenizeResponse:
        return await self._answering.tokenize(request)

    async def Score(  # noqa: N802 - named by the protocol
        self, request: inference_pb2.ScoreRequest, context: Context
    ) -> inference_pb2.ScoreResponse:
        caller = Caller(caller_name(), request.request_id or uuid.uuid4().hex)
        enter_trace(context.invocation_metadata() or ())
        return await self._answering.score(request, time_left_s(context), caller)

    async def ListModels(  # noqa: N802 - named by the protocol
        self,
        request: inference_pb2.ListModelsRequest,  # noqa: ARG002 - the signature of the protocol
        context: Context,  # noqa: ARG002 - the signature of the protocol
    ) -> inference_pb2.ListModelsResponse:
        return await self._answering.list_models()


def time_left_s(context: Context) -> float | None:
    """How long an answer may take; None where the caller set no deadline."""
    remaining_s = context.time_remaining()
    return None if remaining_s is None else remaining_s - min(ANSWER_S, 0.1 * remaining_s)
