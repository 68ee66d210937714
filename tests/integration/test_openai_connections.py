"""Connections of the OpenAI door: clients that go away, do not read, do not write; TLS; tokens that are taken back."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator

import httpx2
import openai
import pytest

from expertmesh_common.access.doorkeeper import Doorkeeper
from expertmesh_common.access.scopes import Scope
from expertmesh_common.access.tokens import accepted, new_token
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.certificates import mint_development_ca
from expertmesh_common.errors import InvalidInput
from expertmesh_common.security import Security
from expertmesh_controller.http_address import http_address
from expertmesh_controller.http_door import openai_door
from models import tiny_bundle as tiny
from rigs.openai_door import LONG, PROMPT, DoorHouse, door_house, eventually

ENDLESS = {"model": "tiny", "prompt": PROMPT, "max_tokens": LONG, "ignore_eos": True}
GREEDY = {"model": "tiny", "temperature": 0, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
async def house(bundle) -> AsyncIterator[DoorHouse]:
    async with door_house(bundle) as house:
        yield house


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


async def test_a_port_that_is_taken_is_an_error_that_names_the_flag(house) -> None:
    with pytest.raises(InvalidInput, match=f"127.0.0.1:{house.port}.*--http-listen"):
        await openai_door(house.models, Security(), f"127.0.0.1:{house.port}", "127.0.0.1:0", 0)


@pytest.mark.parametrize(
    ("asked", "listen", "address"),
    [
        (None, "127.0.0.1:7070", "127.0.0.1:7080"),
        (None, "0.0.0.0:7171", "0.0.0.0:7181"),
        (None, "[::1]:7070", "[::1]:7080"),
        (None, "127.0.0.1:0", "127.0.0.1:0"),
        (None, "127.0.0.1:65530", "127.0.0.1:0"),
        (None, "unix:/run/x", None),
        ("off", "127.0.0.1:7070", None),
        ("10.0.0.1:80", "127.0.0.1:7070", "10.0.0.1:80"),
    ],
)
def test_the_door_is_beside_the_grpc_port_unless_asked_otherwise(asked, listen, address) -> None:
    assert http_address(asked, listen) == address


@pytest.mark.parametrize("asked", ["7080", "host:", "host:x", "host:70000", ""])
def test_what_is_no_address_is_refused(asked) -> None:
    with pytest.raises(InvalidInput, match="--http-listen"):
        http_address(asked, "127.0.0.1:7070")


async def test_a_door_to_other_machines_needs_a_token(house, caplog) -> None:
    with pytest.raises(InvalidInput, match="without a token"):
        await openai_door(house.models, Security(), "0.0.0.0:0", "127.0.0.1:0", 0)
    assert await openai_door(house.models, Security(), None, "0.0.0.0:0", 0) is None
    assert "no HTTP on 0.0.0.0:0 without a token" in caplog.text
    door = await openai_door(house.models, Security(token="t"), "0.0.0.0:0", "127.0.0.1:0", 0)
    assert door is not None
    await door.stop()


async def test_tls_shows_a_certificate_and_takes_a_token_in_place_of_the_clients(bundle, tmp_path) -> None:
    files = mint_development_ca(tmp_path, ["127.0.0.1"])
    async with door_house(bundle, Security(files, "secret")) as house:
        trusting = ssl.create_default_context(cafile=str(files.ca))
        async with (
            httpx2.AsyncClient(verify=trusting) as inner,
            house.client(api_key="secret", http_client=inner) as ok,
        ):
            assert [model.id async for model in ok.models.list()] == ["tiny"]
            chunks = [c async for c in await ok.completions.create(prompt="a", max_tokens=4, stream=True, **GREEDY)]
            assert chunks[-1].choices[0].finish_reason == "length"
        async with house.client(api_key="secret") as stranger:
            with pytest.raises(openai.APIConnectionError):
                await stranger.models.list()
        with pytest.raises(InvalidInput, match="certificates are not asked for here"):
            await openai_door(house.models, Security(files), "127.0.0.1:0", "127.0.0.1:0", 0)


async def test_new_certificates_are_shown_without_a_restart(bundle, tmp_path) -> None:
    files = mint_development_ca(tmp_path, ["127.0.0.1"])
    async with door_house(bundle, Security(files, "secret")) as house:
        before = await shown_certificate(house)
        mint_development_ca(tmp_path, ["127.0.0.1"])
        later = time.time() + 5
        for path in files.paths:
            os.utime(path, (later, later))
        after = await shown_certificate(house)
        assert before != after
        files.key.write_text("half written")
        assert await shown_certificate(house) == after


async def shown_certificate(house: DoorHouse) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", house.port, ssl=context)
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return found


def doorkeeper_with(own: str, **scopes: tuple[str, Scope]) -> Doorkeeper:
    keeper = Doorkeeper(own)
    keeper.publish([accepted(token, name, [scope]) for name, (token, scope) in scopes.items()])
    return keeper


async def test_a_token_that_may_only_join_is_refused_and_one_that_may_infer_is_let_in(bundle) -> None:
    inferring, joining = new_token(), new_token()
    keeper = doorkeeper_with("boot", one=(inferring, Scope.INFER), two=(joining, Scope.JOIN))
    async with door_house(bundle, Security(token="boot", doorkeeper=keeper)) as house:
        async with house.client(api_key=joining) as client:
            with pytest.raises(openai.PermissionDeniedError, match="this call needs infer"):
                await client.models.list()
        async with house.client(api_key=inferring) as client:
            assert [model.id async for model in client.models.list()] == ["tiny"]


async def test_a_token_that_is_taken_back_ends_the_streams_that_run_with_it(bundle) -> None:
    token = new_token()
    keeper = doorkeeper_with("boot", one=(token, Scope.INFER))
    async with door_house(bundle, Security(token="boot", doorkeeper=keeper)) as house:
        house.plane.delay_s = 0.005
        async with house.client(api_key=token) as client:
            asked = {**GREEDY, "prompt": PROMPT, "max_tokens": LONG}
            stream = await client.completions.create(stream=True, **asked)
            waiting = asyncio.create_task(client.completions.create(**asked))
            await eventually(lambda: house.gateway.engine.outstanding == 2)
            keeper.publish([])
            with pytest.raises(openai.APIError, match="revoked") as caught:
                [chunk async for chunk in stream]
            assert caught.value.body["code"] == "invalid_api_key"
            with pytest.raises(openai.AuthenticationError, match="revoked"):
                await waiting
            await house.emptied()
