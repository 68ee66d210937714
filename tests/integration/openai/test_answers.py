"""Answers of the OpenAI door, read by OpenAI's own clients."""

from __future__ import annotations

import asyncio

import pytest

from models import tiny_bundle as tiny
from rigs.openai_door import PROMPT, DoorHouse, door_house

GREEDY = {"model": "tiny", "temperature": 0, "extra_body": {"ignore_eos": True}}
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the rain"}]


def text_of(house: DoorHouse, ids: list[int]) -> str:
    return house.gateway._codec.decode(ids)


async def test_a_completion_is_the_references_text_with_its_usage(house, client, bundle) -> None:
    answer = await client.completions.create(prompt=PROMPT, max_tokens=12, **GREEDY)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.model == "tiny"
    (choice,) = answer.choices
    assert choice.text == text_of(house, tiny.greedy_ids(bundle, PROMPT, 12))
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 12, 15)


async def test_a_streamed_completion_has_the_same_text_in_pieces(client) -> None:
    whole = await client.completions.create(prompt="the rain", max_tokens=20, **GREEDY)
    chunks = [c async for c in await client.completions.create(prompt="the rain", max_tokens=20, stream=True, **GREEDY)]
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    assert len(chunks) > 5
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert len({c.id for c in chunks}) == 1
    assert {c.object for c in chunks} == {"text_completion"}
    assert all(c.usage is None for c in chunks)


async def test_a_chat_goes_through_the_models_template(house, client) -> None:
    answer = await client.chat.completions.create(messages=CHAT, max_completion_tokens=8, **GREEDY)
    rendered = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in CHAT) + "<|im_start|>assistant\n"
    same = await client.completions.create(prompt=rendered, max_tokens=8, **GREEDY)
    message = answer.choices[0].message
    assert (message.role, message.content) == ("assistant", same.choices[0].text)
    assert answer.object == "chat.completion"
    assert answer.usage.prompt_tokens == same.usage.prompt_tokens
    assert answer.choices[0].finish_reason == "length"


async def test_developer_messages_and_text_parts_are_read_as_what_they_mean(client) -> None:
    parts = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "rain"}]},
    ]
    plain = await client.chat.completions.create(messages=CHAT, max_tokens=8, **GREEDY)
    answer = await client.chat.completions.create(messages=parts, max_tokens=8, **GREEDY)
    assert answer.choices[0].message.content == plain.choices[0].message.content


async def test_a_streamed_chat_opens_with_the_role_and_ends_with_the_usage_if_asked(client) -> None:
    whole = await client.chat.completions.create(messages=CHAT, max_tokens=10, **GREEDY)
    stream = await client.chat.completions.create(
        messages=CHAT, max_tokens=10, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    chunks = [chunk async for chunk in stream]
    *said, last = chunks
    assert (said[0].choices[0].delta.role, said[0].choices[0].delta.content) == ("assistant", "")
    assert "".join(c.choices[0].delta.content or "" for c in said) == whole.choices[0].message.content
    assert said[-1].choices[0].finish_reason == "length"
    assert all(c.usage is None for c in said)
    assert last.choices == []
    assert last.usage == whole.usage


async def test_an_answer_that_the_model_ends_says_stop(client) -> None:
    async for chunk in await client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=390, temperature=2.0, seed=5, stream=True
    ):
        last = chunk
    assert last.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_the_answer_before_it(house, client, stream: bool) -> None:
    text = (await client.completions.create(prompt=PROMPT, max_tokens=60, **GREEDY)).choices[0].text
    stop = next(text[i : i + 3] for i in range(8, len(text)) if text[i : i + 3].isascii())
    asked = {"prompt": PROMPT, "max_tokens": 60, "stop": [stop, "never said"], **GREEDY}
    if stream:
        chunks = [chunk async for chunk in await client.completions.create(stream=True, **asked)]
        shown, reason = "".join(c.choices[0].text for c in chunks), chunks[-1].choices[0].finish_reason
    else:
        choice = (await client.completions.create(**asked)).choices[0]
        shown, reason = choice.text, choice.finish_reason
    assert (shown, reason) == (text[: text.index(stop)], "stop")
    await house.emptied()


async def test_a_seed_repeats_an_answer_and_no_seed_gives_another_one(client) -> None:
    async def ask(**options) -> str:
        answer = await client.completions.create(model="tiny", prompt="the rain", max_tokens=16, **options)
        return answer.choices[0].text

    assert await ask(seed=7) == await ask(seed=7)
    assert await ask(seed=-7) == await ask(seed=2**64 - 7)
    assert len({await ask() for _ in range(3)}) > 1  # OpenAI's default temperature is 1


@pytest.mark.parametrize("stream", [False, True])
async def test_n_answers_are_those_of_the_seeds_that_follow(client, stream: bool) -> None:
    asked = {"model": "tiny", "messages": CHAT, "max_tokens": 12}
    single = [(await client.chat.completions.create(seed=40 + i, **asked)).choices[0].message.content for i in range(3)]
    if stream:
        texts = ["", "", ""]
        async for chunk in await client.chat.completions.create(seed=40, n=3, stream=True, **asked):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        answer = await client.chat.completions.create(seed=40, n=3, **asked)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage.completion_tokens <= 36
        texts = [choice.message.content for choice in answer.choices]
    assert texts == single


async def test_every_form_of_prompt_is_answered_in_order(house, client, bundle) -> None:
    ids = [[5, 6, 7], [9], [11, 12]]
    expected = [text_of(house, tiny.greedy_ids(bundle, each, 6)) for each in ids]
    answer = await client.completions.create(prompt=ids, max_tokens=6, **GREEDY)
    assert [(c.index, c.text) for c in answer.choices] == list(enumerate(expected))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 18)
    twice = await client.completions.create(prompt=ids, n=2, max_tokens=6, **GREEDY)
    assert [c.text for c in twice.choices] == [text for text in expected for _ in range(2)]
    assert twice.usage.prompt_tokens == 6  # each prompt once, whatever n is
    texts = await client.completions.create(prompt=["the rain", "a"], max_tokens=6, **GREEDY)
    assert [c.text for c in texts.choices] == [
        (await client.completions.create(prompt=each, max_tokens=6, **GREEDY)).choices[0].text
        for each in ("the rain", "a")
    ]


async def test_answers_of_one_request_wait_for_each_other_rather_than_fill_the_queue(bundle) -> None:
    # 4 slots and 8 places in the queue are fewer than 30 answers; the door lets one request take 8.
    async with door_house(bundle, queue_limit=8) as house, house.client() as client:
        answer = await client.completions.create(prompt=[[i + 1, 6] for i in range(6)], n=5, max_tokens=3, **GREEDY)
        assert len(answer.choices) == 30
        assert answer.choices[29].text == text_of(house, tiny.greedy_ids(bundle, [6, 6], 3))


@pytest.mark.parametrize("prompt", ["the rain ö", [5, 6, 7]])
async def test_an_echo_puts_the_prompt_in_front(house, client, prompt) -> None:
    plain = await client.completions.create(prompt=prompt, max_tokens=5, **GREEDY)
    echoed = await client.completions.create(prompt=prompt, max_tokens=5, echo=True, **GREEDY)
    text = prompt if isinstance(prompt, str) else text_of(house, prompt)
    assert echoed.choices[0].text == text + plain.choices[0].text
    assert echoed.usage == plain.usage
    alone = await client.completions.create(prompt=prompt, max_tokens=0, echo=True, **GREEDY)
    assert (alone.choices[0].text, alone.choices[0].finish_reason) == (text, "length")
    assert (alone.usage.prompt_tokens, alone.usage.completion_tokens) == (plain.usage.prompt_tokens, 0)


async def test_models_are_listed_and_found_by_name(house, client) -> None:
    (listed,) = (await client.models.list()).data
    assert (listed.id, listed.object, listed.owned_by) == ("tiny", "model", "expertmesh")
    found = await client.models.retrieve("tiny")
    assert found == listed
    assert (found.precision, found.context_tokens, found.ready) == ("fp32", 400, True)


async def test_fields_that_clients_send_for_their_own_books_change_nothing(client) -> None:
    plain = await client.chat.completions.create(messages=CHAT, max_tokens=6, **GREEDY)
    more = await client.chat.completions.create(
        messages=CHAT, max_tokens=6, max_completion_tokens=6, user="u", store=False, metadata={"a": "b"},
        presence_penalty=0, frequency_penalty=0.0, logit_bias={}, response_format={"type": "text"}, tools=[],
        service_tier="auto", n=1, stop=None, **GREEDY,
    )  # fmt: skip
    assert more.choices == plain.choices


async def test_every_response_carries_the_requests_id(client) -> None:
    own = await client.completions.with_raw_response.create(
        prompt=PROMPT, max_tokens=1, extra_headers={"X-Request-Id": "mine-1"}, **GREEDY
    )
    assert own.headers["x-request-id"] == "mine-1"
    answer = await client.completions.create(prompt=PROMPT, max_tokens=1, **GREEDY)
    assert answer._request_id.startswith("req-")


def ask_blocking(house: DoorHouse) -> tuple[str, str, str, list[str]]:
    with house.blocking_client() as client:
        whole = client.chat.completions.create(messages=CHAT, max_tokens=9, **GREEDY)
        with client.chat.completions.create(messages=CHAT, max_tokens=9, stream=True, **GREEDY) as stream:
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        text = client.completions.create(prompt="a", max_tokens=4, **GREEDY).choices[0].text
        return whole.choices[0].message.content, streamed, text, [model.id for model in client.models.list()]


async def test_the_blocking_client_gets_the_same(house, client) -> None:
    whole, streamed, text, models = await asyncio.to_thread(ask_blocking, house)
    assert whole == streamed
    assert (
        whole
        == (await client.chat.completions.create(messages=CHAT, max_tokens=9, **GREEDY)).choices[0].message.content
    )
    assert text == (await client.completions.create(prompt="a", max_tokens=4, **GREEDY)).choices[0].text
    assert models == ["tiny"]


async def test_answers_run_side_by_side(client) -> None:
    async def ask(first: int) -> str:
        answer = await client.completions.create(prompt=[first, 6], max_tokens=30, **GREEDY)
        return answer.choices[0].text

    alone = [await ask(first) for first in range(1, 5)]
    assert await asyncio.gather(*(ask(first) for first in range(1, 5))) == alone
