"""What OpenAI's clients send, as checked data; a value that is null was not sent."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from expertmesh_controller.gateway.sampling.options import MAX_PENALTY, MAX_SEED, MAX_TOP_LOGPROBS

__all__ = ["IGNORED", "NEUTRAL", "AnswerRequest", "ChatRequest", "CompletionRequest", "Prompt"]

MAX_CHOICES = 128
"""Answers to one request: prompts times `n`."""

IGNORED = frozenset({
    "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "safety_identifier", "service_tier", "store", "user",
})  # fmt: skip
"""Clients send these for bookkeeping; no answer depends on them."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""What this mesh cannot do, with the values that ask for nothing."""

Prompt = str | tuple[int, ...]
"""Text, or token ids."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StreamOptions(_Message):
    include_usage: bool = False
    include_obfuscation: bool = False
    """Known, and without effect: chunks carry no padding."""


def _as_stops(value: Any) -> Any:  # noqa: ANN401 - whatever was sent
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class AnswerRequest(_Message):
    """What both kinds of request share. Fields from `top_k` on are extensions: the mesh's own options."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), le=MAX_SEED)] | None = None
    stop: Annotated[tuple[str, ...], BeforeValidator(_as_stops)] = ()
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=MAX_PENALTY)] = 1.0
    ignore_eos: bool = False


def _as_prompts(value: Any) -> tuple[Prompt, ...]:  # noqa: ANN401 - whatever was sent
    """Every form of `prompt` as a list of prompts."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(isinstance(part, str) for part in value):
            return tuple(value)
        if _are_ids(value):
            return (tuple(value),)
        if all(isinstance(part, list) and _are_ids(part) for part in value):
            return tuple(tuple(part) for part in value)
    raise ValueError("must be a string, a list of strings, a list of token ids, or a list of lists of token ids")


def _are_ids(value: list[Any]) -> bool:
    return all(type(part) is int and 0 <= part < 2**32 for part in value)


class CompletionRequest(AnswerRequest):
    """The body of `/v1/completions`."""

    prompt: Annotated[tuple[Prompt, ...], BeforeValidator(_as_prompts), Field(max_length=MAX_CHOICES)]
    max_tokens: Annotated[int, Field(ge=0)] = 16
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


def _as_text(value: Any) -> str:  # noqa: ANN401 - whatever was sent
    """The content of a message, given whole or in parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of text parts")  # noqa: TRY004 - pydantic reports ValueErrors
    for number, part in enumerate(value):
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise ValueError(f"part {number} is no text: this mesh reads parts like {{'type': 'text', 'text': '...'}}")
    return "".join(part["text"] for part in value)


class ChatMessage(_Message):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_as_text)]
    name: str | None = None
    """Known, and without effect: chat templates do not show it."""


class ChatRequest(AnswerRequest):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[tuple[ChatMessage, ...], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0
