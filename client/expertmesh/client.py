"""The synchronous client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

import numpy as np
from numpy.typing import NDArray

from expertmesh import calls, inspecting, operating, replies
from expertmesh.addresses import addresses_of
from expertmesh.calls import Call, Request, Response
from expertmesh.channel import Connection, Tls
from expertmesh.endpoints import Endpoints, ask, connections_of
from expertmesh.generation import Generation
from expertmesh.jobs import Jobs
from expertmesh.operating import ModelStatus, SlaTarget
from expertmesh.options import GenerateOptions, Message, generate_request
from expertmesh.requests import score_request, tokenize_request
from expertmesh.resuming import ResumePolicy
from expertmesh.streams import TokenStream
from expertmesh.types import Completion, ExpertPlacement, Node, Readiness, Score, ServedModel, Tokenization
from expertmesh_api.v1 import inference_pb2, operations_pb2

DEFAULT_DEADLINE_S = 300.0


class Client:
    """A mesh, at the addresses of one or several of its gateways.

    `address` is `host:port` or `unix:path`, several of them with commas or as a sequence, or None for
    `$EXPERTMESH_ADDRESS` (localhost:7070 if that is unset). Calls are spread over the addresses and go to another one
    when one fails; answers that break off in the middle go on where they were. `token` and `tls` are what the mesh
    demands; a mesh that this user started on this machine is reached without naming its token. `deadline_s` bounds
    every call that names none, attempts and waits included; `resume` says how many attempts there are.

    Any number of threads may share a client; one stream is read by one thread. A client does not survive a fork:
    make one in each process.

    Raises:
        InvalidRequest: an address, the token or a certificate file cannot be used.

    """

    def __init__(
        self,
        address: str | Sequence[str] | None = None,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        deadline_s: float = DEFAULT_DEADLINE_S,
        resume: ResumePolicy | None = None,
    ) -> None:
        self._endpoints = Endpoints(connections_of(addresses_of(address), token, tls), Connection.open)
        self._deadline_s = deadline_s
        self._resume = resume or ResumePolicy()
        self.jobs = Jobs(self._endpoints, self._resume, deadline_s)
        """Long work in the background: imports of models."""

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
        request = generate_request(prompt, prompt_ids, messages, options)
        attempts = self._endpoints.attempts(self._resume, options.get("deadline_s", self._deadline_s))
        return TokenStream(Generation(request, attempts), self._endpoints)

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
        self,
        text: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        model: str = "",
        deadline_s: float | None = None,
    ) -> Tokenization:
        """Token ids of a text, or of a conversation as the model's chat template writes it."""
        return replies.tokenization(self._unary(calls.TOKENIZE, tokenize_request(text, messages, model), deadline_s))

    def score(
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
        """How likely a text, or token ids, are under the model: natural logarithms per token, and their total.

        `prompt` or `prompt_ids` stand before it and are not scored; without them the first token has no log
        probability. The two are tokenised apart, so no token lies across the border. `top_logprobs` (at most 20) asks
        for the most likely tokens at each place. The same question gives the same answer.

        Raises:
            InvalidRequest: the arguments make no request, or the text does not fit the context.

        """
        request = score_request(
            text, ids, prompt, prompt_ids, model=model, top_logprobs=top_logprobs, request_id=request_id
        )
        return replies.score(self._unary(calls.SCORE, request, deadline_s), request.request_id)

    def models(self, *, deadline_s: float | None = None) -> tuple[ServedModel, ...]:
        """What the mesh serves."""
        return replies.served_models(self._unary(calls.LIST_MODELS, inference_pb2.ListModelsRequest(), deadline_s))

    def nodes(self, *, deadline_s: float | None = None) -> tuple[Node, ...]:
        """The workers of the mesh."""
        return replies.nodes(self._unary(calls.LIST_NODES, operations_pb2.ListNodesRequest(), deadline_s))

    def experts(self, model: str = "", *, deadline_s: float | None = None) -> tuple[ExpertPlacement, ...]:
        """Where every expert lives."""
        return replies.placements(
            self._unary(calls.LIST_EXPERTS, operations_pb2.ListExpertsRequest(model=model), deadline_s)
        )

    def mesh(self) -> inspecting.MeshFacts:
        """Version, epoch and clock of the control loop."""
        return inspecting.mesh_facts(self._unary(calls.LIST_NODES, operations_pb2.ListNodesRequest()))

    def explain(self, text: str, *, model: str = "", as_question: bool = False) -> inspecting.Explanation:
        """Run a text through the model and tell, for every token and layer, which experts it went to and why.

        `as_question` renders it through the chat template first.
        """
        request = inspecting.explain_text_request(text, model, as_question)
        return inspecting.explanation(self._unary(calls.EXPLAIN_TEXT, request))

    def explain_rows(self, rows: NDArray[np.float32], *, layer: int, model: str) -> inspecting.LayerExplanation:
        """What the gate of one layer decides about rows float32 [T, hidden]."""
        request = inspecting.explain_rows_request(rows, layer, model)
        return inspecting.rows_explanation(self._unary(calls.EXPLAIN, request), layer)

    def wait_ready(self, *, model: str = "", deadline_s: float | None = None) -> Readiness:
        """Return once every expert has a live instance and placement is at rest.

        Raises:
            DeadlineExceeded: that took too long.

        """
        request = operations_pb2.WaitReadyRequest(model=model)
        return replies.readiness(self._unary(calls.WAIT_READY, request, deadline_s))

    def served_models(self) -> tuple[ModelStatus, ...]:
        """The models of the mesh: target, share of the budget, copies, and how far each one is."""
        message = self._unary(calls.LIST_SERVED, operations_pb2.ListServedRequest())
        return operating.model_statuses(message)

    def serve_model(
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
        """Serve one more model; returns when its trunk is loaded, its experts follow (`wait_ready`).

        `path` is the bundle's folder on the controller's machine. `name`, `precision`, `numerics` ("exact", or "fast":
        gateways hold the whole model as one graph, without workers) and `slots` default to the bundle's name and the
        controller's settings. `local_layers` ("0,3,8-11", "none") are those whose experts gateways hold with "fast";
        the others go to workers. `budget_share` (0 to 1) bounds what its experts may take of all workers' budgets.
        Serving what is served already, the same way, changes nothing.

        Raises:
            InvalidRequest: the bundle cannot be served like this, or the name is taken; the message names what.
            NotFound: there is no bundle, or one of its blobs is missing.
            DataLoss: a blob is not what its digest says.

        """
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
        return operating.model_status(self._unary(calls.SERVE_MODEL, request, deadline_s).model)

    def unserve_model(self, name: str, *, drain_s: float = operating.DRAIN_S, deadline_s: float | None = None) -> int:
        """Take a model away; returns how many running answers were cut off after `drain_s` seconds.

        New requests for it are refused from now on. Its memory is free when this returns; workers unload its experts
        shortly after.

        Raises:
            NotFound: it is not served.

        """
        request = operating.unserve_request(name, drain_s)
        wait_s = drain_s + self._deadline_s if deadline_s is None else deadline_s
        return self._unary(calls.UNSERVE_MODEL, request, wait_s).cut_requests

    def close(self) -> None:
        """End every running call and the connections."""
        for channel in self._endpoints.channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _unary(self, call: Call[Request, Response], request: Request, deadline_s: float | None = None) -> Response:
        limit_s = self._deadline_s if deadline_s is None else deadline_s
        return ask(self._endpoints, self._endpoints.attempts(self._resume, limit_s), call, request)
