"""Log probabilities through the OpenAI door, in both forms, against a dense numpy pass of the same bundle."""

from __future__ import annotations

import numpy as np
import pytest

from expertmesh_common.bundle.blobs import Bundle
from models import tiny_bundle as tiny
from rigs.openai_door import PROMPT

GREEDY = {"model": "tiny", "temperature": 0, "extra_body": {"ignore_eos": True}}
CHAT = [{"role": "user", "content": "the rain"}]
COUNT = 12


def reference(bundle: Bundle, ids: list[int]) -> np.ndarray:
    """Log probabilities float64 [tokens, vocabulary] of what follows each token."""
    logits = tiny.dense_logits(bundle, ids).astype(np.float64)
    top = logits.max(1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))


async def test_a_completions_log_probabilities_are_the_models(house, client, bundle) -> None:
    answer = await client.completions.create(prompt=PROMPT, max_tokens=COUNT, logprobs=3, **GREEDY)
    choice, ids = answer.choices[0], tiny.greedy_ids(bundle, PROMPT, COUNT)
    expected = reference(bundle, PROMPT + ids)[len(PROMPT) - 1 : -1]
    assert np.allclose(
        choice.logprobs.token_logprobs, [row[i] for row, i in zip(expected, ids, strict=True)], atol=1e-4
    )
    for shown, row in zip(choice.logprobs.top_logprobs, expected, strict=True):
        assert np.allclose(sorted(shown.values(), reverse=True), np.sort(row)[::-1][: len(shown)], atol=1e-4)
        assert 3 <= len(shown) <= 4
    assert all(token in top for token, top in zip(choice.logprobs.tokens, choice.logprobs.top_logprobs, strict=True))


async def test_offsets_say_where_each_tokens_text_begins(client) -> None:
    answer = await client.completions.create(prompt="the rain", max_tokens=40, logprobs=0, **GREEDY)
    choice = answer.choices[0]
    offsets = choice.logprobs.text_offset
    assert offsets == sorted(offsets)
    assert len(offsets) == 40
    plain = [(o, t) for o, t in zip(offsets, choice.logprobs.tokens, strict=True) if not t.startswith(("bytes:", "<|"))]
    assert len(plain) > 5
    assert all(choice.text[offset:].startswith(token) for offset, token in plain)


async def test_a_chats_log_probabilities_carry_bytes_that_join_to_its_text(client) -> None:
    answer = await client.chat.completions.create(
        messages=CHAT, max_tokens=COUNT, logprobs=True, top_logprobs=2, **GREEDY
    )
    choice = answer.choices[0]
    assert len(choice.logprobs.content) == COUNT
    joined = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content)
    assert joined.decode(errors="replace") == choice.message.content
    for entry in choice.logprobs.content:
        best, second = entry.top_logprobs
        assert entry.logprob == best.logprob >= second.logprob
        assert (entry.token, entry.bytes) == (best.token, best.bytes)
    bare = await client.chat.completions.create(messages=CHAT, max_tokens=2, logprobs=True, **GREEDY)
    assert [entry.top_logprobs for entry in bare.choices[0].logprobs.content] == [[], []]


async def test_a_stream_brings_the_same_log_probabilities_in_pieces(client) -> None:
    asked = {"messages": CHAT, "max_tokens": COUNT, "logprobs": True, "top_logprobs": 2, **GREEDY}
    whole = (await client.chat.completions.create(**asked)).choices[0].logprobs.content
    entries = []
    async for chunk in await client.chat.completions.create(stream=True, **asked):
        entries += (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else None) or []
    assert entries == whole
    spelled = {"prompt": PROMPT, "max_tokens": COUNT, "logprobs": 1, **GREEDY}
    complete = (await client.completions.create(**spelled)).choices[0].logprobs
    offsets = []
    async for chunk in await client.completions.create(stream=True, **spelled):
        offsets += chunk.choices[0].logprobs.text_offset if chunk.choices[0].logprobs else []
    assert offsets == complete.text_offset


async def test_text_that_a_stop_string_takes_back_leaves_no_log_probability(client) -> None:
    asked = {"prompt": PROMPT, "max_tokens": 60, "logprobs": 0, **GREEDY}
    full = (await client.completions.create(**asked)).choices[0]
    stop = next(full.text[i : i + 3] for i in range(8, len(full.text)) if full.text[i : i + 3].isascii())
    cut = (await client.completions.create(stop=stop, **asked)).choices[0]
    assert cut.finish_reason == "stop"
    assert all(offset < len(cut.text) for offset in cut.logprobs.text_offset)
    assert cut.logprobs.tokens == full.logprobs.tokens[: len(cut.logprobs.tokens)]
    assert len(cut.logprobs.tokens) == sum(offset < len(cut.text) for offset in full.logprobs.text_offset)


@pytest.mark.parametrize("max_tokens", [0, 4])
async def test_an_echo_brings_the_prompts_own_log_probabilities(house, client, bundle, max_tokens: int) -> None:
    prompt = [116, 104, 101, 32, 114]
    answer = await client.completions.create(prompt=prompt, max_tokens=max_tokens, logprobs=2, echo=True, **GREEDY)
    choice, ids = answer.choices[0], prompt + tiny.greedy_ids(bundle, prompt, max_tokens)
    expected = [row[i] for row, i in zip(reference(bundle, ids)[:-1], ids[1:], strict=True)]
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.top_logprobs[0] is None
    assert np.allclose(choice.logprobs.token_logprobs[1:], expected, atol=1e-4)
    assert choice.text == house.gateway._codec.decode(ids)
    assert choice.logprobs.text_offset[:5] == [0, 1, 2, 3, 4]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, max_tokens)
    await house.emptied()
