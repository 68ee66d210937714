"""From OpenAI's requests to the gateway's: one call per answer, in the order of the answers."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from expertmesh_api.v1 import inference_pb2
from expertmesh_controller.gateway.openai.messages import AnswerRequest, ChatRequest, CompletionRequest, Prompt

__all__ = ["Ask", "Echo", "ask_chat", "ask_completion"]

_SEEDS = 2**64
_ROLES = {"developer": "system"}  # the newer name of the same thing, which chat templates do not know


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that its answers begin with; `top_logprobs` None asks for no log probabilities of it."""

    prompt: Prompt
    top_logprobs: int | None


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks of the gateway.

    `calls[i]` gives answer i, whose prompt is number i // per_prompt; `echoes` has one entry per prompt, or none.
    With `only_echo` nothing is generated. `top_logprobs` None asks for no log probabilities. `limit` is the parameter
    that the caller limits the tokens with.
    """

    model: str
    calls: tuple[inference_pb2.GenerateRequest, ...]
    per_prompt: int
    stream: bool
    usage_in_stream: bool
    top_logprobs: int | None
    echoes: tuple[Echo, ...] = ()
    only_echo: bool = False
    limit: str = "max_tokens"

    def prompt_of(self, answer: int) -> int:
        return answer // self.per_prompt


def ask_completion(request: CompletionRequest, request_id: str) -> Ask:
    """The calls of `/v1/completions`."""
    echoes = tuple(Echo(prompt, request.logprobs) for prompt in request.prompt) if request.echo else ()
    asks = (_with_prompt(prompt) for prompt in request.prompt)
    return Ask(
        request.model,
        _calls(request, tuple(asks), request.max_tokens, request.logprobs, request_id),
        request.n,
        request.stream,
        _usage_in_stream(request),
        request.logprobs,
        echoes,
        only_echo=request.max_tokens == 0,
    )


def ask_chat(request: ChatRequest, request_id: str) -> Ask:
    """The calls of `/v1/chat/completions`; without a limit, the context is the limit."""
    chat = inference_pb2.Chat()
    for message in request.messages:
        chat.messages.add(role=_ROLES.get(message.role, message.role), content=message.content)
    limit = request.max_completion_tokens or request.max_tokens or 0
    top_logprobs = request.top_logprobs if request.logprobs else None
    calls = _calls(request, (inference_pb2.GenerateRequest(chat=chat),), limit, top_logprobs, request_id)
    limited_by = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    return Ask(
        request.model, calls, request.n, request.stream, _usage_in_stream(request), top_logprobs, limit=limited_by
    )


def _with_prompt(prompt: Prompt) -> inference_pb2.GenerateRequest:
    if isinstance(prompt, str):
        return inference_pb2.GenerateRequest(prompt=prompt)
    return inference_pb2.GenerateRequest(prompt_ids=inference_pb2.TokenIds(ids=prompt))


def _calls(
    request: AnswerRequest,
    prompts: tuple[inference_pb2.GenerateRequest, ...],
    max_tokens: int,
    top_logprobs: int | None,
    request_id: str,
) -> tuple[inference_pb2.GenerateRequest, ...]:
    """Answer i of a prompt is drawn with `seed` + i; without a seed, every request gets numbers of its own."""
    first = secrets.randbits(64) if request.seed is None else request.seed
    options = inference_pb2.GenerateRequest(
        model=request.model,
        sampling=_sampling(request, top_logprobs),
        max_tokens=max_tokens,
        logprobs=top_logprobs is not None,
    )
    calls: list[inference_pb2.GenerateRequest] = []
    for prompt in prompts:
        for number in range(request.n):
            call = inference_pb2.GenerateRequest()
            call.CopyFrom(options)
            call.MergeFrom(prompt)
            call.sampling.seed = (first + number) % _SEEDS
            call.request_id = request_id if not calls else f"{request_id}-{len(calls)}"
            calls.append(call)
    return tuple(calls)


def _sampling(request: AnswerRequest, top_logprobs: int | None) -> inference_pb2.SamplingOptions:
    return inference_pb2.SamplingOptions(
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        stop=request.stop,
        top_logprobs=top_logprobs or 0,
        ignore_eos=request.ignore_eos,
    )


def _usage_in_stream(request: AnswerRequest) -> bool:
    return request.stream_options is not None and request.stream_options.include_usage
