"""What is written down about tokens: who did what, no secret, and what happens while the store is gone."""

from __future__ import annotations

import grpc

from expertmesh_api.v1 import access_pb2
from expertmesh_common.access.tokens import new_token, split_token
from expertmesh_common.clock import SystemClock
from expertmesh_controller.control.access.audit import AUDIT_KEY
from expertmesh_controller.control.access.record import ACCESS_KEY
from rigs.access_servers import (
    BreakableStore,
    list_nodes,
    refusal,
    running,
)


async def test_the_audit_says_who_did_what_with_which_result_and_survives_a_restart():
    store = BreakableStore(SystemClock())
    async with running(store) as controller:
        admin = await controller.create("alice", "admin")
        infer = await controller.create("app", "infer")
        await controller.ask("RevokeToken", access_pb2.RevokeTokenRequest(id=split_token(infer).id), admin)
        await refusal(controller.ask("RevokeToken", access_pb2.RevokeTokenRequest(id="nobody"), admin))
        await refusal(controller.ask("ListTokens", access_pb2.ListTokensRequest(), new_token()))
        low = await controller.create("low", "operate")
        await refusal(controller.ask("CreateToken", access_pb2.CreateTokenRequest(name="x"), low))
    async with running(store) as controller:
        entries = [(e.token_name, e.method, e.result) for e in await controller.audit()]
        assert entries == [
            ("bootstrap", "Access/CreateToken", "OK"),
            ("bootstrap", "Access/CreateToken", "OK"),
            ("alice", "Access/RevokeToken", "OK"),
            ("alice", "Access/RevokeToken", "NOT_FOUND"),
            ("bootstrap", "Access/CreateToken", "OK"),
            ("low", "Access/CreateToken", "PERMISSION_DENIED"),
        ]
        last = (await controller.audit())[2]
        assert (last.token_id, last.peer, len(last.arguments_digest)) == (split_token(admin).id, "127.0.0.1", 64)
        assert await list_nodes(controller.address, low) is not None  # tokens survive too


async def test_neither_store_nor_listing_nor_log_contains_a_secret(caplog):
    caplog.set_level("DEBUG")
    store = BreakableStore(SystemClock())
    async with running(store) as controller:
        token = await controller.create("alice", "admin")
        await controller.ask("ListTokens", access_pb2.ListTokensRequest(), token)
        await refusal(list_nodes(controller.address, token[:-1]))
        kept = await store.get(ACCESS_KEY) + b"".join(await store.tail(AUDIT_KEY, 100))
        listed = await controller.ask("ListTokens", access_pb2.ListTokensRequest())
    secret = split_token(token).secret
    for text in (kept.decode(), str(listed), caplog.text):
        assert secret[:-1] not in text
        assert "s3cret" not in text


async def test_while_the_store_is_gone_tokens_stay_good_none_is_made_and_the_audit_waits():
    async with running() as controller:
        token = await controller.create("ops", "operate")
        controller.store.gone = True
        await list_nodes(controller.address, token)
        code, _ = await refusal(
            controller.ask("CreateToken", access_pb2.CreateTokenRequest(name="x", scopes=["infer"]))
        )
        assert code is grpc.StatusCode.UNAVAILABLE
        controller.store.gone = False
        assert [(e.method, e.result) for e in await controller.audit()] == [
            ("Access/CreateToken", "OK"), ("Access/CreateToken", "UNAVAILABLE")
        ]  # fmt: skip


async def test_a_controller_that_cannot_read_its_store_yet_refuses_no_given_out_token_for_good():
    store = BreakableStore(SystemClock())
    store.gone = True
    async with running(store) as controller:
        code, _ = await refusal(list_nodes(controller.address, new_token()))
        assert code is grpc.StatusCode.UNAVAILABLE
        await list_nodes(controller.address, "s3cret")
