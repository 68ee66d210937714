"""From wire messages to the values that callers see."""

from __future__ import annotations

from expertmesh.types import (
    Completion,
    ExpertPlacement,
    FinishReason,
    Node,
    Readiness,
    Score,
    ScoredToken,
    ServedModel,
    Token,
    Tokenization,
    TopLogprob,
)
from expertmesh_api.v1 import inference_pb2, operations_pb2


def token(message: inference_pb2.Token) -> Token:
    return Token(message.position, message.id, message.text, *_logprobs(message))


def completion(
    finished: inference_pb2.Finished, tokens: tuple[Token, ...], request_id: str, resumed: int
) -> Completion:
    reason: FinishReason = "length" if finished.reason == inference_pb2.FINISH_REASON_LENGTH else "stop"
    return Completion(
        text="".join(t.text for t in tokens) + finished.text_tail,
        tokens=tokens,
        finish_reason=reason,
        prompt_tokens=finished.prompt_tokens,
        completion_tokens=finished.completion_tokens,
        ttft_ms=finished.ttft_ms,
        total_ms=finished.total_ms,
        queue_ms=finished.queue_ms,
        precision=finished.precision,
        numerics=finished.numerics,
        active_share=finished.active_share,
        lossy=tuple(finished.lossy),
        request_id=request_id,
        resumed=resumed,
    )


def score(message: inference_pb2.ScoreResponse, request_id: str) -> Score:
    return Score(
        tokens=tuple(_scored_token(token) for token in message.tokens),
        total_logprob=message.total_logprob,
        prompt_tokens=message.prompt_tokens,
        precision=message.precision,
        numerics=message.numerics,
        active_share=message.active_share,
        lossy=tuple(message.lossy),
        queue_ms=message.queue_ms,
        total_ms=message.total_ms,
        request_id=request_id,
    )


def _scored_token(message: inference_pb2.ScoredToken) -> ScoredToken:
    return ScoredToken(message.id, message.piece, *_logprobs(message))


def _logprobs(
    message: inference_pb2.Token | inference_pb2.ScoredToken,
) -> tuple[float | None, tuple[TopLogprob, ...]]:
    """That of the token itself, if the server told it, and the most likely ones at its place."""
    own = message.logprob if message.HasField("logprob") else None
    return own, tuple(TopLogprob(top.id, top.logprob) for top in message.top_logprobs)


def tokenization(message: inference_pb2.TokenizeResponse) -> Tokenization:
    return Tokenization(tuple(message.ids), tuple(message.pieces))


def served_models(message: inference_pb2.ListModelsResponse) -> tuple[ServedModel, ...]:
    return tuple(
        ServedModel(m.name, m.family, m.precision, m.context_tokens, m.bundle_digest, m.ready) for m in message.models
    )


def nodes(message: operations_pb2.ListNodesResponse) -> tuple[Node, ...]:
    return tuple(_node(node) for node in message.nodes)


def _node(node: operations_pb2.Node) -> Node:
    return Node(
        worker_id=node.worker_id,
        generation=node.generation,
        state=node.state,
        cores=node.cores,
        memory_bytes=node.memory_bytes,
        budget_bytes=node.budget_bytes,
        resident_bytes=node.resident_bytes,
        experts=node.experts,
        rows=node.rows,
        speed_rows_per_s=node.speed_rows_per_s,
        heartbeat_age_ms=node.heartbeat_age_ms,
        providers=tuple(node.providers),
        endpoints=tuple(f"{endpoint.transport}:{endpoint.address}" for endpoint in node.endpoints),
        version=node.version,
    )


def placements(message: operations_pb2.ListExpertsResponse) -> tuple[ExpertPlacement, ...]:
    return tuple(
        ExpertPlacement(
            e.expert.model, e.expert.layer, e.expert.index, e.precision, e.resident_bytes, tuple(e.worker_ids), e.rows
        )
        for e in message.experts
    )


def readiness(message: operations_pb2.WaitReadyResponse) -> Readiness:
    return Readiness(message.workers, message.experts, message.instances, message.missing_bytes)
