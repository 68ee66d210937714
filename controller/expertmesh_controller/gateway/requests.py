"""From messages of the `Inference` service to checked requests of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from expertmesh_api.v1 import inference_pb2
from expertmesh_common.errors import InvalidInput
from expertmesh_common.unknown_fields import refuse_unknown_fields
from expertmesh_controller.gateway.batching.admission import granted_tokens
from expertmesh_controller.gateway.batching.jobs import Request
from expertmesh_controller.gateway.sampling.options import SamplingOptions, checked
from expertmesh_controller.gateway.text.codec import TextCodec

__all__ = ["bounded", "known_ids", "parse_generate", "parse_tokenize", "sampling_options"]

CHARACTERS_PER_TOKEN = 64
"""Texts with more characters than this times the context are refused before anything is spent on them."""


def parse_generate(
    message: inference_pb2.GenerateRequest, codec: TextCodec, vocabulary: int, context_tokens: int, deadline: float
) -> Request:
    """A request that the engine can run; `deadline` is in monotonic seconds.

    Raises:
        InvalidInput: a field is missing, out of range or contradicts another; the message names it.

    """
    refuse_unknown_fields(message)
    sampling = checked(sampling_options(message), vocabulary)
    field, prompt_ids = _prompt(message, codec, vocabulary, context_tokens)
    max_tokens = granted_tokens(len(prompt_ids), message.max_tokens, context_tokens, field)
    resumed = known_ids("resume_token_ids", message.resume_token_ids, vocabulary)
    if len(resumed) > max_tokens:
        raise InvalidInput(f"resume_token_ids has {len(resumed)} tokens: max_tokens allows {max_tokens} in all")
    return Request(tuple(prompt_ids), max_tokens, deadline, sampling, resumed, codec.eos_ids)


def sampling_options(message: inference_pb2.GenerateRequest) -> SamplingOptions:
    """The options as sent, unset ones at what means off."""
    sent = message.sampling
    return SamplingOptions(
        temperature=sent.temperature,
        top_k=sent.top_k,
        top_p=sent.top_p if sent.HasField("top_p") else 1.0,
        min_p=sent.min_p,
        seed=sent.seed,
        repetition_penalty=sent.repetition_penalty if sent.HasField("repetition_penalty") else 1.0,
        stop=tuple(sent.stop),
        logprobs=message.logprobs,
        top_logprobs=sent.top_logprobs,
        ignore_eos=sent.ignore_eos,
    )


def parse_tokenize(
    message: inference_pb2.TokenizeRequest, codec: TextCodec, vocabulary: int, context_tokens: int
) -> list[int]:
    """Token ids of a text or a conversation, or the given ones, checked.

    Raises:
        InvalidInput: there is neither, or it is too long.

    """
    refuse_unknown_fields(message)
    match message.WhichOneof("input"):
        case "text":
            return codec.encode(bounded("text", message.text, context_tokens))
        case "chat":
            return codec.encode_chat(_messages(message.chat, context_tokens))
        case "token_ids":
            return list(known_ids("token_ids.ids", message.token_ids.ids, vocabulary))
        case _:
            raise InvalidInput("input is missing: send one of `text`, `chat` and `token_ids`")


def _prompt(
    message: inference_pb2.GenerateRequest, codec: TextCodec, vocabulary: int, context_tokens: int
) -> tuple[str, Sequence[int]]:
    """(name of the field, token ids)."""
    match message.WhichOneof("input"):
        case "prompt":
            return "prompt", codec.encode(bounded("prompt", message.prompt, context_tokens))
        case "prompt_ids":
            return "prompt_ids", known_ids("prompt_ids.ids", message.prompt_ids.ids, vocabulary)
        case "chat":
            return "chat", codec.encode_chat(_messages(message.chat, context_tokens))
        case _:
            raise InvalidInput("input is missing: send one of `prompt`, `prompt_ids` and `chat`")


def _messages(chat: inference_pb2.Chat, context_tokens: int) -> list[Mapping[str, str]]:
    for number, message in enumerate(chat.messages):
        if not message.role:
            raise InvalidInput(f"chat.messages[{number}].role is empty: send system, user or assistant")
    bounded("chat", "".join(message.content for message in chat.messages), context_tokens)
    return [{"role": message.role, "content": message.content} for message in chat.messages]


def bounded(field: str, text: str, context_tokens: int) -> str:
    """The text, unless it has so many characters that it cannot fit the context."""
    allowed = CHARACTERS_PER_TOKEN * context_tokens
    if len(text) > allowed:
        raise InvalidInput(f"{field} has {len(text)} characters: at most {allowed} are allowed")
    return text


def known_ids(field: str, ids: Sequence[int], vocabulary: int) -> tuple[int, ...]:
    """The ids, unless one is beyond the vocabulary."""
    if ids and max(ids) >= vocabulary:
        place = next(n for n, i in enumerate(ids) if i >= vocabulary)
        raise InvalidInput(f"{field}[{place}] is {ids[place]}: token ids go from 0 to {vocabulary - 1}")
    return tuple(ids)
