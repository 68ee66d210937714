"""The synchronous client."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc

from expertmesh import replies
from expertmesh.calls import Reply, SyncCalls, Unary
from expertmesh.channel import DEFAULT_ADDRESS, Connection, Tls
from expertmesh.generation import Generation
from expertmesh.options import GenerateOptions, Message, generate_request
from expertmesh.requests import tokenize_request
from expertmesh.resuming import ResumePolicy
from expertmesh.streams import TokenStream, to_error
from expertmesh.types import Completion, ExpertPlacement, Node, Readiness, ServedModel, Tokenization
from expertmesh_api.v1 import inference_pb2, operations_pb2

DEFAULT_DEADLINE_S = 300.0

Request = TypeVar("Request")
Response = TypeVar("Response")


class Client:
    """A mesh at one address; safe to share between threads, each stream for one of them.

    `address` is `host:port` or `unix:path`. `token` and `tls` are what the mesh demands; a mesh that this user started
    on this machine is reached without naming its token. `deadline_s` bounds every call that names none.
    """

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
        self._channel = connection.open()
        self._calls = SyncCalls(self._channel)

    def generate(
        self,
        prompt: str | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        messages: Sequence[Message] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> TokenStream:
        """Continue a text, token ids or a conversation; give exactly one of them.

        Raises:
            InvalidRequest: at once, when the arguments make no request; everything else comes while iterating.

        """
        request_id = options.get("request_id") or uuid.uuid4().hex
        request = generate_request(prompt, prompt_ids, messages, options, request_id)
        generation = Generation(request, options.get("deadline_s", self._deadline_s), self._resume)
        return TokenStream(generation, self._open, self._address)

    def chat(self, messages: Sequence[Message], **options: Unpack[GenerateOptions]) -> TokenStream:
        """Answer a conversation: messages with `role` (system, user, assistant) and `content`."""
        return self.generate(messages=messages, **options)

    def complete(
        self,
        prompt: str | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        messages: Sequence[Message] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """`generate`, waiting for the whole answer."""
        with self.generate(prompt, prompt_ids=prompt_ids, messages=messages, **options) as stream:
            return stream.complete()

    def tokenize(
        self, text: str | None = None, *, messages: Sequence[Message] | None = None, model: str = ""
    ) -> Tokenization:
        """Token ids of a text, or of a conversation as the model's chat template writes it."""
        return replies.tokenization(self._unary(self._calls.tokenize, tokenize_request(text, messages, model)))

    def models(self) -> tuple[ServedModel, ...]:
        """What the mesh serves."""
        return replies.served_models(self._unary(self._calls.list_models, inference_pb2.ListModelsRequest()))

    def nodes(self) -> tuple[Node, ...]:
        """The workers of the mesh."""
        return replies.nodes(self._unary(self._calls.list_nodes, operations_pb2.ListNodesRequest()))

    def experts(self, model: str = "") -> tuple[ExpertPlacement, ...]:
        """Where every expert lives."""
        return replies.placements(self._unary(self._calls.list_experts, operations_pb2.ListExpertsRequest(model=model)))

    def wait_ready(self, *, model: str = "", deadline_s: float | None = None) -> Readiness:
        """Return once every expert has a live instance and placement is at rest.

        Raises:
            DeadlineExceeded: that took too long.

        """
        request = operations_pb2.WaitReadyRequest(model=model)
        return replies.readiness(self._unary(self._calls.wait_ready, request, deadline_s))

    def close(self) -> None:
        """End every running call and the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, request: inference_pb2.GenerateRequest, remaining_s: float) -> Reply:
        return self._calls.generate(request, timeout=remaining_s, metadata=self._metadata)

    def _unary(self, call: Unary[Request, Response], request: Request, deadline_s: float | None = None) -> Response:
        try:
            return call(request, timeout=deadline_s or self._deadline_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise to_error(error, self._address) from error
