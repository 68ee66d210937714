"""What goes wrong while the OpenAI door answers: OpenAI's own client raises its own error classes."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from expertmesh_common.errors import CorruptData
from models import tiny_bundle as tiny
from rigs.openai_door import LONG, PROMPT, eventually

LONGEST = {"model": "tiny", "prompt": PROMPT, "max_tokens": LONG, "extra_body": {"ignore_eos": True}}


async def test_a_full_gateway_raises_rate_limit_with_a_time_to_come_back(house, client) -> None:
    house.plane.delay_s = 0.01
    running = [asyncio.create_task(client.completions.create(**LONGEST)) for _ in range(6)]
    await eventually(lambda: house.gateway.engine.outstanding == 6)
    with pytest.raises(openai.RateLimitError) as caught:
        await client.completions.create(model="tiny", prompt="a")
    headers = caught.value.response.headers
    assert caught.value.code == "rate_limit_exceeded"
    assert int(headers["retry-after"]) >= 1
    assert int(headers["retry-after-ms"]) >= 100
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await house.emptied()


async def test_the_client_comes_back_after_a_rate_limit_by_itself(house, client) -> None:
    running = [asyncio.create_task(client.completions.create(**LONGEST)) for _ in range(6)]
    await eventually(lambda: house.gateway.engine.outstanding == 6)
    async with house.client(max_retries=50) as patient:
        answer = await patient.completions.create(model="tiny", prompt=PROMPT, max_tokens=2)
    assert answer.usage.completion_tokens <= 2
    await asyncio.gather(*running)


async def test_a_deadline_raises_a_server_error_and_frees_the_slot(house, client) -> None:
    house.plane.delay_s = 0.01
    with pytest.raises(openai.InternalServerError) as caught:
        await client.completions.create(**LONGEST, extra_headers={"X-Deadline-Ms": "300"})
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
    await house.emptied()


async def test_a_client_that_times_out_frees_its_slot(house, client) -> None:
    house.plane.delay_s = 0.01
    with pytest.raises(openai.APITimeoutError):
        await client.completions.create(**LONGEST, timeout=0.3)
    await house.emptied()
    assert len(house.plane.calls) < LONG * tiny.LAYERS  # it did not run to its end


async def test_a_gateway_that_is_gone_raises_an_error_that_is_worth_another_try(house, client) -> None:
    await house.gateway.stop()
    with pytest.raises(openai.InternalServerError) as caught:
        await client.completions.create(model="tiny", prompt="a")
    assert (caught.value.status_code, caught.value.code) == (503, "unavailable")
    assert caught.value.response.headers["retry-after"] == "1"


async def test_a_failure_in_the_middle_of_a_stream_is_its_last_event(house, client) -> None:
    house.plane.fail_at_layer = 1
    stream = await client.completions.create(**LONGEST, stream=True)
    assert (await anext(aiter(stream))).choices
    house.plane.failures = [CorruptData("a blob is broken")]
    with pytest.raises(openai.APIError, match="a blob is broken") as caught:
        [chunk async for chunk in stream]
    assert caught.value.body["code"] == "corrupt_data"
    await house.emptied()


async def test_one_failing_answer_of_several_ends_the_request(house, raw) -> None:
    house.plane.fail_at_layer = 1
    house.plane.failures = [CorruptData("a blob is broken")]
    body = {"model": "tiny", "prompt": PROMPT, "n": 3, "max_tokens": LONG, "ignore_eos": True}
    answer = await raw.post("/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "corrupt_data")
    await house.emptied()


async def test_an_unforeseen_error_says_nothing_but_where_to_look(house, raw, monkeypatch, caplog) -> None:
    async def broken() -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(house.models, "list_models", broken)
    answer = await raw.get("/models")
    assert answer.status_code == 500
    message = answer.json()["error"]["message"]
    assert "a secret" not in json.dumps(answer.json())
    mark = message.removeprefix("internal error ").split(";")[0]
    assert f"id={mark}" in caplog.text
