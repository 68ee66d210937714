"""Connections of the OpenAI door: clients that go away, do not read, do not write."""

from __future__ import annotations

import asyncio
import json
import socket

import httpx2
import openai
import pytest

from models import tiny_bundle as tiny
from rigs.openai_door import LONG, PROMPT, DoorHouse, door_house, eventually

ENDLESS = {"model": "tiny", "prompt": PROMPT, "max_tokens": LONG, "ignore_eos": True}
GREEDY = {"model": "tiny", "temperature": 0, "extra_body": {"ignore_eos": True}}


def request_bytes(body: dict, path: str = "/v1/completions") -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def opened(house: DoorHouse, receive_bytes: int | None = None) -> socket.socket:
    """A bare connection; `receive_bytes` makes its kernel buffer small."""
    plain = socket.socket()
    if receive_bytes is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", house.port))
    return plain


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_goes_away_frees_its_slots(house, stream: bool, n: int) -> None:
    house.plane.delay_s = 0.005
    with await opened(house) as plain:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(plain, request_bytes({**ENDLESS, "stream": stream, "n": n}))
        await eventually(lambda: house.gateway.engine.outstanding == n)
        if stream:
            assert await loop.sock_recv(plain, 4096)
    await house.emptied()
    assert len(house.plane.calls) < LONG * tiny.LAYERS  # it did not run to its end


async def test_a_client_that_closes_its_stream_early_frees_the_slot(house) -> None:
    house.plane.delay_s = 0.005
    async with house.client() as client:
        asked = {**GREEDY, "prompt": PROMPT, "max_tokens": LONG}
        async with await client.completions.create(stream=True, **asked) as stream:
            await anext(aiter(stream))
            assert house.gateway.engine.outstanding == 1
    await house.emptied()
    assert len(house.plane.calls) < LONG * tiny.LAYERS


async def test_a_reader_that_takes_nothing_is_cut_off_and_holds_up_nobody(bundle) -> None:
    # More than the kernel's buffers take: 32 answers with 20 alternatives to every token, about 11 MB.
    body = {**ENDLESS, "prompt": [PROMPT] * 32, "stream": True, "logprobs": 20}
    async with door_house(bundle, stall_s=0.5, queue_limit=8) as house, house.client() as client:
        with await opened(house, 1024) as plain:
            await asyncio.get_running_loop().sock_sendall(plain, request_bytes(body))
            await eventually(lambda: house.gateway.engine.outstanding > 0)
            answer = await client.completions.create(prompt=[9], max_tokens=5, **GREEDY)
            assert answer.usage.completion_tokens == 5
            await house.emptied()
            async with asyncio.timeout(10):
                assert await cut(plain) < 10_000_000


async def cut(plain: socket.socket) -> int:
    """Read until the server has ended the connection; the bytes that there were."""
    loop, count = asyncio.get_running_loop(), 0
    try:
        while received := await loop.sock_recv(plain, 65536):
            count += len(received)
    except ConnectionResetError:
        return count
    return count


async def test_a_slow_reader_gets_its_whole_answer(house) -> None:
    with await opened(house, 2048) as plain:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(plain, request_bytes({**ENDLESS, "stream": True, "logprobs": 5}))
        received = b""
        async with asyncio.timeout(60):
            while not received.endswith(b"0\r\n\r\n"):
                received += await loop.sock_recv(plain, 1024)
    events = [json.loads(line[6:]) for line in received.decode().splitlines() if line.startswith("data: {")]
    assert sum(len(e["choices"][0]["logprobs"]["tokens"]) for e in events if e["choices"][0]["logprobs"]) == LONG
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert "data: [DONE]" in received.decode()


async def test_a_body_that_never_arrives_is_given_up_and_costs_no_slot(house, monkeypatch) -> None:
    monkeypatch.setattr("expertmesh_controller.gateway.openai.door.BODY_S", 0.2)
    with await opened(house) as plain:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(plain, request_bytes(ENDLESS)[:-5])
        answer = await asyncio.wait_for(loop.sock_recv(plain, 65536), 10)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in answer
    assert house.gateway.engine.outstanding == 0


async def test_garbage_in_place_of_http_is_refused_and_the_door_stays_open(house) -> None:
    for garbage in (b"\x00\xff" * 100, b"GET /v1/models HTTP/9.9\r\n\r\n", b"A" * 100_000):
        with await opened(house) as plain:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(plain, garbage + b"\r\n\r\n")
            assert (await asyncio.wait_for(loop.sock_recv(plain, 65536), 10)).startswith(b"HTTP/1.")
    async with house.raw() as raw:
        assert (await raw.get("/models")).status_code == 200


async def test_one_connection_serves_many_requests(house) -> None:
    async with house.raw(limits=httpx2.Limits(max_connections=1)) as raw:
        for _ in range(5):
            answer = await raw.post("/completions", json={**ENDLESS, "max_tokens": 2})
            assert answer.status_code == 200
            assert (await raw.post("/completions", json={})).status_code == 400
        assert len(house.door._runner.server.connections) == 1


async def test_answers_under_way_end_before_the_door_does(bundle) -> None:
    async with door_house(bundle) as house, house.client() as client:
        asked = asyncio.create_task(client.completions.create(prompt=PROMPT, max_tokens=60, **GREEDY))
        await eventually(lambda: house.gateway.engine.outstanding == 1)
        await house.door.stop()
        assert (await asked).usage.completion_tokens == 60
        with pytest.raises(openai.APIConnectionError):
            await client.models.list()
