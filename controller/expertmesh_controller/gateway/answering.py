"""What a door (gRPC, OpenAI over HTTP) asks of the gateway, for every model that the gateway serves."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from expertmesh_api.v1 import gating_pb2, inference_pb2

__all__ = ["Answering", "Caller", "Explaining"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the name that fairness and logs go by, and the request's id."""

    name: str = "anonymous"
    request_id: str = ""


class Answering(Protocol):
    """Raises MeshError classes only: InvalidInput, NotHere, Exhausted, Unavailable, DeadlinePassed, CorruptData."""

    def generate(
        self, request: inference_pb2.GenerateRequest, deadline_s: float | None, caller: Caller
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        """Stream one answer; `deadline_s` is the time left, None takes the default.

        Closing the iterator (`aclose`) cancels the answer and frees its slot.
        """
        ...

    async def tokenize(self, request: inference_pb2.TokenizeRequest) -> inference_pb2.TokenizeResponse:
        """Token ids of a text or a conversation."""
        ...

    async def score(
        self, request: inference_pb2.ScoreRequest, deadline_s: float | None, caller: Caller
    ) -> inference_pb2.ScoreResponse:
        """How likely a given text is; cancelling the call frees its slot."""
        ...

    async def list_models(self) -> inference_pb2.ListModelsResponse:
        """What is served here."""
        ...

    def fingerprint(self, model: str) -> str:
        """What a model answers with (weights, precision, numerics), alike on every gateway; "" if it is not served."""
        ...


class Explaining(Answering, Protocol):
    """Answers, and says why a model works as it does."""

    async def explain_text(
        self, request: gating_pb2.ExplainTextRequest, deadline_s: float | None, caller: Caller
    ) -> gating_pb2.ExplainTextResponse:
        """Why the tokens of a text go where they go; cancelling the call frees its slot."""
        ...
