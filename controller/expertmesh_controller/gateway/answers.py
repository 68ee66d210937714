"""From the engine's events to messages of the `Inference` service."""

from __future__ import annotations

from collections.abc import Callable

from expertmesh_api.v1 import inference_pb2
from expertmesh_controller.gateway.batching.jobs import Facts, Picked, Reason, Request

__all__ = ["finished", "token_event"]

_REASONS = {
    Reason.STOP: inference_pb2.FINISH_REASON_STOP,
    Reason.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
}


def token_event(picked: Picked, text: str, text_bytes: Callable[[int], bytes]) -> inference_pb2.GenerateResponse:
    """A token with the text that became certain with it; `text_bytes` spells single tokens."""
    choice = picked.choice
    token = inference_pb2.Token(position=picked.position, id=choice.token_id, text=text, logprob=choice.logprob)
    if choice.logprob is not None:
        token.text_bytes = text_bytes(choice.token_id)
    for token_id, logprob in choice.top_logprobs:
        token.top_logprobs.add(id=token_id, logprob=logprob, text_bytes=text_bytes(token_id))
    return inference_pb2.GenerateResponse(token=token)


def finished(
    request: Request,
    reason: Reason,
    facts: Facts,
    *,
    text_tail: str,
    completion_tokens: int,
    now: float,
    precision: str,
    numerics: str,
) -> inference_pb2.GenerateResponse:
    """The last message of an answer; `now` in monotonic seconds."""
    return inference_pb2.GenerateResponse(
        finished=inference_pb2.Finished(
            reason=_REASONS[reason],
            text_tail=text_tail,
            prompt_tokens=len(request.prompt_ids),
            completion_tokens=completion_tokens,
            ttft_ms=_since_admission_ms(facts, facts.first_token),
            total_ms=_since_admission_ms(facts, now),
            queue_ms=_since_admission_ms(facts, facts.started),
            precision=precision,
            numerics=numerics,
            active_share=facts.active_share,
        )
    )


def _since_admission_ms(facts: Facts, moment: float | None) -> float:
    return 0.0 if moment is None else 1000 * (moment - facts.admitted)
