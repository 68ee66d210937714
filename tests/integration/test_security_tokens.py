"""Given-out tokens on real servers: what they may do, and who gets none."""

from __future__ import annotations

import grpc
import pytest

from expertmesh_api.v1 import access_pb2, blobs_pb2_grpc
from expertmesh_common.access.following import AccessFollower
from expertmesh_common.access.tokens import new_token
from expertmesh_common.clock import SystemClock
from expertmesh_common.security import Security
from expertmesh_common.serving import Serving
from rigs.access_servers import (
    Endless,
    first,
    list_nodes,
    refusal,
    running,
)


async def test_a_token_does_what_its_scopes_say_and_a_refusal_names_the_scope_that_is_needed():
    async with running() as controller:
        operate, infer = await controller.create("ops", "operate"), await controller.create("app", "infer")
        await list_nodes(controller.address, operate)

        assert await refusal(list_nodes(controller.address, infer)) == (
            grpc.StatusCode.PERMISSION_DENIED, "token 'app' has the scope infer; this call needs operate"
        )  # fmt: skip
        code, _ = await refusal(controller.ask("ListTokens", access_pb2.ListTokensRequest(), operate))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        for unknown in (new_token(), "guess", operate[:-1]):
            code, words = await refusal(list_nodes(controller.address, unknown))
            assert code is grpc.StatusCode.UNAUTHENTICATED
            assert unknown not in words


async def test_a_server_that_has_not_heard_from_its_controller_yet_refuses_no_given_out_token_for_good():
    own = new_token()
    security = Security(token=own)
    AccessFollower(security, "127.0.0.1:1", SystemClock())
    serving = Serving(security)
    blobs_pb2_grpc.add_BlobsServicer_to_server(Endless(), serving.server)
    address = f"127.0.0.1:{await serving.start('127.0.0.1:0')}"
    code, _ = await refusal(first(address, Security(token=new_token())))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert await first(address, security) == "bootstrap"
    await serving.stop(0)


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (access_pb2.CreateTokenRequest(name="", scopes=["infer"]), "name"),
        (access_pb2.CreateTokenRequest(name="a b", scopes=["infer"]), "name"),
        (access_pb2.CreateTokenRequest(name="bootstrap", scopes=["infer"]), "name"),
        (access_pb2.CreateTokenRequest(name="a"), "scopes"),
        (access_pb2.CreateTokenRequest(name="a", scopes=["peer"]), "scopes"),
        (access_pb2.CreateTokenRequest(name="a", scopes=["infer"], ttl_ms=2**60), "ttl_ms"),
    ],
)
async def test_a_wrong_request_for_a_token_is_refused_with_its_field_named(request_, named):
    async with running() as controller:
        code, words = await refusal(controller.ask("CreateToken", request_))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words.startswith(f"{named}:")


async def test_a_mesh_that_demands_no_token_gives_none_out():
    async with running(own=None) as controller:
        code, words = await refusal(
            controller.ask("CreateToken", access_pb2.CreateTokenRequest(name="a", scopes=["infer"]))
        )
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "--token" in words
