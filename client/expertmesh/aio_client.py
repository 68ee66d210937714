"""The asyncio client; every method means what its sibling in `Client` means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

import numpy as np
from numpy.typing import NDArray

from expertmesh import calls, inspecting, operating, replies
from expertmesh.addresses import addresses_of
from expertmesh.aio_asking import ask_async
from expertmesh.aio_jobs import AsyncJobs
from expertmesh.calls import Call, Request, Response
from expertmesh.channel import Connection, Tls
from expertmesh.client import DEFAULT_DEADLINE_S
from expertmesh.endpoints import Endpoints, connections_of
from expertmesh.generation import Generation
from expertmesh.operating import ModelStatus, SlaTarget
from expertmesh.options import GenerateOptions, Message, generate_request
from expertmesh.requests import score_request, tokenize_request
from expertmesh.resuming import ResumePolicy
from expertmesh.streams import AsyncTokenStream
from expertmesh.types import Completion, ExpertPlacement, Node, Readiness, Score, ServedModel, Tokenization
from expertmesh_api.v1 import inference_pb2, operations_pb2


class AsyncClient:
    """`Client` for asyncio. Make it inside the running event loop that uses it; one task reads a stream."""

    def __init__(
        self,
        address: str | Sequence[str] | None = None,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        deadline_s: float = DEFAULT_DEADLINE_S,
        resume: ResumePolicy | None = None,
    ) -> None:
        self._endpoints = Endpoints(connections_of(addresses_of(address), token, tls), Connection.open_async)
        self._deadline_s = deadline_s
        self._resume = resume or ResumePolicy()
        self.jobs = AsyncJobs(self._endpoints, self._resume, deadline_s)
        """Long work in the background: imports of models."""

    def generate(
        self,
        prompt: str | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        messages: Sequence[Message] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncTokenStream:
        """Continue a text, token ids or a conversation; give exactly one of them."""
        request = generate_request(prompt, prompt_ids, messages, options)
        attempts = self._endpoints.attempts(self._resume, options.get("deadline_s", self._deadline_s))
        return AsyncTokenStream(Generation(request, attempts), self._endpoints)

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
        self,
        text: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        model: str = "",
        deadline_s: float | None = None,
    ) -> Tokenization:
        """Token ids of a text, or of a conversation as the model's chat template writes it."""
        return replies.tokenization(
            await self._unary(calls.TOKENIZE, tokenize_request(text, messages, model), deadline_s)
        )

    async def score(
        self,
        text: str | None = None,
        *,
        ids: Sequence[int] | None = None,
        prompt: str | None = None,
        prompt_ids: Sequence[int] | None = None,
        model: str = "",
        top_logprobs: int = 0,
        deadline_s: float | None = None,
        request_id: str = "",
    ) -> Score:
        """How likely a text, or token ids, are under the model: natural logarithms per token, and their total."""
        request = score_request(
            text, ids, prompt, prompt_ids, model=model, top_logprobs=top_logprobs, request_id=request_id
        )
        return replies.score(await self._unary(calls.SCORE, request, deadline_s), request.request_id)

    async def models(self, *, deadline_s: float | None = None) -> tuple[ServedModel, ...]:
        """What the mesh serves."""
        return replies.served_models(
            await self._unary(calls.LIST_MODELS, inference_pb2.ListModelsRequest(), deadline_s)
        )

    async def nodes(self, *, deadline_s: float | None = None) -> tuple[Node, ...]:
        """The workers of the mesh."""
        return replies.nodes(await self._unary(calls.LIST_NODES, operations_pb2.ListNodesRequest(), deadline_s))

    async def experts(self, model: str = "", *, deadline_s: float | None = None) -> tuple[ExpertPlacement, ...]:
        """Where every expert lives."""
        request = operations_pb2.ListExpertsRequest(model=model)
        return replies.placements(await self._unary(calls.LIST_EXPERTS, request, deadline_s))

    async def mesh(self) -> inspecting.MeshFacts:
        """Version, epoch and clock of the control loop."""
        return inspecting.mesh_facts(await self._unary(calls.LIST_NODES, operations_pb2.ListNodesRequest()))

    async def explain(self, text: str, *, model: str = "", as_question: bool = False) -> inspecting.Explanation:
        """Run a text through the model and tell, for every token and layer, which experts it went to and why."""
        request = inspecting.explain_text_request(text, model, as_question)
        return inspecting.explanation(await self._unary(calls.EXPLAIN_TEXT, request))

    async def explain_rows(self, rows: NDArray[np.float32], *, layer: int, model: str) -> inspecting.LayerExplanation:
        """What the gate of one layer decides about rows float32 [T, hidden]."""
        request = inspecting.explain_rows_request(rows, layer, model)
        return inspecting.rows_explanation(await self._unary(calls.EXPLAIN, request), layer)

    async def wait_ready(self, *, model: str = "", deadline_s: float | None = None) -> Readiness:
        """Return once every expert has a live instance and placement is at rest."""
        request = operations_pb2.WaitReadyRequest(model=model)
        return replies.readiness(await self._unary(calls.WAIT_READY, request, deadline_s))

    async def served_models(self) -> tuple[ModelStatus, ...]:
        """The models of the mesh: target, share of the budget, copies, and how far each one is."""
        message = await self._unary(calls.LIST_SERVED, operations_pb2.ListServedRequest())
        return operating.model_statuses(message)

    async def serve_model(
        self,
        path: str | Path,
        *,
        name: str = "",
        precision: str = "",
        sla: SlaTarget | None = None,
        budget_share: float = 1.0,
        slots: int = 0,
        numerics: str = "",
        local_layers: str = "",
        deadline_s: float | None = None,
    ) -> ModelStatus:
        """Serve one more model; returns when its trunk is loaded, its experts follow (`wait_ready`)."""
        request = operating.serve_request(
            path,
            name=name,
            precision=precision,
            sla=sla,
            budget_share=budget_share,
            slots=slots,
            numerics=numerics,
            local_layers=local_layers,
        )
        return operating.model_status((await self._unary(calls.SERVE_MODEL, request, deadline_s)).model)

    async def unserve_model(
        self, name: str, *, drain_s: float = operating.DRAIN_S, deadline_s: float | None = None
    ) -> int:
        """Take a model away; returns how many running answers were cut off after `drain_s` seconds."""
        request = operating.unserve_request(name, drain_s)
        wait_s = drain_s + self._deadline_s if deadline_s is None else deadline_s
        return (await self._unary(calls.UNSERVE_MODEL, request, wait_s)).cut_requests

    async def close(self) -> None:
        """End every running call and the connections."""
        for channel in self._endpoints.channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _unary(
        self, call: Call[Request, Response], request: Request, deadline_s: float | None = None
    ) -> Response:
        limit_s = self._deadline_s if deadline_s is None else deadline_s
        return await ask_async(self._endpoints, self._endpoints.attempts(self._resume, limit_s), call, request)
