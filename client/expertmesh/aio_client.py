"""The asyncio client; every method means what its sibling in `Client` means."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc
import grpc.aio

from expertmesh import replies
from expertmesh.channel import DEFAULT_ADDRESS, Connection, Tls
from expertmesh.client import DEFAULT_DEADLINE_S
from expertmesh.generation import Generation
from expertmesh.options import GenerateOptions, Message, generate_request
from expertmesh.requests import tokenize_request
from expertmesh.resuming import ResumePolicy
from expertmesh.streams import AsyncReply, AsyncTokenStream, to_error
from expertmesh.types import Completion, ExpertPlacement, Node, Readiness, ServedModel, Tokenization
from expertmesh_api.v1 import inference_pb2, inference_pb2_grpc, operations_pb2, operations_pb2_grpc

Request = TypeVar("Request")
Response = TypeVar("Response")


class AsyncClient:
    """A mesh at one address. Make it inside the running event loop that uses it."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        deadline_s: float = DEFAULT_DEADLINE_S,
        resume: ResumePolicy | None = None,
    ) -> None:
        connection = Connection(address, token, tls)
        self._address = address
        self._metadata = connection.metadata()
        self._deadline_s = deadline_s
        self._resume = resume or ResumePolicy()
        self._channel = connection.open_async()
        self._inference = inference_pb2_grpc.InferenceStub(self._channel)
        self._operations = operations_pb2_grpc.OperationsStub(self._channel)

    def generate(
        self,
        prompt: str | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        messages: Sequence[Message] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncTokenStream:
        """Continue a text, token ids or a conversation; give exactly one of them."""
        request_id = options.get("request_id") or uuid.uuid4().hex
        request = generate_request(prompt, prompt_ids, messages, options, request_id)
        generation = Generation(request, options.get("deadline_s", self._deadline_s), self._resume)
        return AsyncTokenStream(generation, self._open, self._address)

    def chat(self, messages: Sequence[Message], **options: Unpack[GenerateOptions]) -> AsyncTokenStream:
        """Answer a conversation: messages with `role` (system, user, assistant) and `content`."""
        return self.generate(messages=messages, **options)

    async def complete(
        self,
        prompt: str | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        messages: Sequence[Message] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """`generate`, waiting for the whole answer."""
        async with self.generate(prompt, prompt_ids=prompt_ids, messages=messages, **options) as stream:
            return await stream.complete()

    async def tokenize(
        self, text: str | None = None, *, messages: Sequence[Message] | None = None, model: str = ""
    ) -> Tokenization:
        """Token ids of a text, or of a conversation as the model's chat template writes it."""
        return replies.tokenization(
            await self._unary(self._inference.Tokenize, tokenize_request(text, messages, model))
        )

    async def models(self) -> tuple[ServedModel, ...]:
        """What the mesh serves."""
        return replies.served_models(await self._unary(self._inference.ListModels, inference_pb2.ListModelsRequest()))

    async def nodes(self) -> tuple[Node, ...]:
        """The workers of the mesh."""
        return replies.nodes(await self._unary(self._operations.ListNodes, operations_pb2.ListNodesRequest()))

    async def experts(self, model: str = "") -> tuple[ExpertPlacement, ...]:
        """Where every expert lives."""
        request = operations_pb2.ListExpertsRequest(model=model)
        return replies.placements(await self._unary(self._operations.ListExperts, request))

    async def wait_ready(self, *, model: str = "", deadline_s: float | None = None) -> Readiness:
        """Return once every expert has a live instance and placement is at rest."""
        request = operations_pb2.WaitReadyRequest(model=model)
        return replies.readiness(await self._unary(self._operations.WaitReady, request, deadline_s))

    async def close(self) -> None:
        """End every running call and the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self, request: inference_pb2.GenerateRequest, remaining_s: float) -> AsyncReply:
        return self._inference.Generate(request, timeout=remaining_s, metadata=self._metadata)

    async def _unary(
        self,
        call: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        deadline_s: float | None = None,
    ) -> Response:
        try:
            return await call(request, timeout=deadline_s or self._deadline_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise to_error(error, self._address) from error
