"""Where the OpenAI door listens, and whom it lets in: addresses, TLS, tokens that are taken back."""

from __future__ import annotations

import asyncio
import os
import ssl
import time

import httpx2
import openai
import pytest

from expertmesh_common.access.doorkeeper import Doorkeeper
from expertmesh_common.access.scopes import Scope
from expertmesh_common.access.tokens import accepted, new_token
from expertmesh_common.certificates import mint_development_ca
from expertmesh_common.errors import InvalidInput
from expertmesh_common.security import Security
from expertmesh_controller.http_address import http_address
from expertmesh_controller.http_door import openai_door
from rigs.openai_door import LONG, PROMPT, DoorHouse, door_house, eventually

GREEDY = {"model": "tiny", "temperature": 0, "extra_body": {"ignore_eos": True}}


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
