"""The arguments of a generation and the request they become."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import TypedDict

from expertmesh.errors import InvalidRequest
from expertmesh_api.v1 import inference_pb2 as pb

Message = Mapping[str, str]


class GenerateOptions(TypedDict, total=False):
    """Every option of a generation; all may be left out.

    model               the only served model by default
    max_tokens          as many as the context allows by default (0)
    temperature         0 (default) is greedy
    top_k, top_p, min_p off by default (0, 1, 0)
    seed                the sampler is a function of seed and position: the same seed gives the same answer
    repetition_penalty  1 (default) is none
    stop                one string or several; the answer ends before the first that appears
    ignore_eos          go on after the model's end token
    logprobs            natural logarithm of each token's probability
    top_logprobs        how many alternatives come with each token, at most 20
    deadline_s          seconds for everything, resumes included; the client's default otherwise
    request_id          a name for logs and traces; random by default
    """

    model: str
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    repetition_penalty: float
    stop: str | Sequence[str]
    ignore_eos: bool
    logprobs: bool
    top_logprobs: int
    deadline_s: float
    request_id: str


_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed", "repetition_penalty", "ignore_eos", "top_logprobs")


def generate_request(
    prompt: str | None,
    prompt_ids: Sequence[int] | None,
    messages: Sequence[Message] | None,
    options: GenerateOptions,
) -> pb.GenerateRequest:
    """The wire form of one generation, with a random request id unless the options name one.

    Raises:
        InvalidRequest: there is not exactly one input, or an option is unknown or of the wrong type or range.

    """
    _check_names(options)
    try:
        request = pb.GenerateRequest(
            model=options.get("model", ""),
            sampling=_sampling(options),
            max_tokens=options.get("max_tokens", 0),
            request_id=options.get("request_id") or random_request_id(),
            logprobs=options.get("logprobs", False) or options.get("top_logprobs", 0) > 0,
        )
        _set_input(request, prompt, prompt_ids, messages)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"a generation option does not fit its field: {error}") from error
    return request


def random_request_id() -> str:
    """A name for a request that its caller gave none."""
    return uuid.uuid4().hex


def _check_names(options: GenerateOptions) -> None:
    unknown = sorted(set(options) - set(GenerateOptions.__annotations__))
    if unknown:
        allowed = ", ".join(GenerateOptions.__annotations__)
        raise InvalidRequest(f"unknown option {unknown[0]!r}; allowed are {allowed}")


def _sampling(options: GenerateOptions) -> pb.SamplingOptions:
    stop = options.get("stop", ())
    given = {name: value for name, value in options.items() if name in _SAMPLING}
    return pb.SamplingOptions(stop=[stop] if isinstance(stop, str) else list(stop), **given)  # type: ignore[arg-type]


def _set_input(
    request: pb.GenerateRequest,
    prompt: str | None,
    prompt_ids: Sequence[int] | None,
    messages: Sequence[Message] | None,
) -> None:
    if sum(given is not None for given in (prompt, prompt_ids, messages)) != 1:
        raise InvalidRequest("give exactly one of prompt, prompt_ids and messages")
    if prompt is not None:
        request.prompt = prompt
    elif prompt_ids is not None:
        request.prompt_ids.CopyFrom(pb.TokenIds(ids=prompt_ids))
    elif messages is not None:
        request.chat.CopyFrom(chat(messages))


def chat(messages: Sequence[Message]) -> pb.Chat:
    """Messages with `role` and `content` in their wire form.

    Raises:
        InvalidRequest: a message lacks one of them.

    """
    try:
        return pb.Chat(messages=[pb.ChatMessage(role=m["role"], content=m["content"]) for m in messages])
    except (KeyError, TypeError) as error:
        raise InvalidRequest(f"every message needs 'role' and 'content' as text: {error}") from error
