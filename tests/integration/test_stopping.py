"""A controller that stops waits for answers, not for those who listen for as long as it runs."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from expertmesh_api.v1 import access_pb2, access_pb2_grpc, routes_pb2, routes_pb2_grpc
from expertmesh_common.security import Security, dial
from expertmesh_controller.process import serve
from expertmesh_controller.settings import read_settings
from models import tiny_bundle as tiny


async def test_whoever_follows_tokens_routes_or_models_is_let_go_at_once(tmp_path):
    address, stop = f"unix:{tmp_path / 'c.sock'}", asyncio.Event()
    flags = {
        "model": [str(tiny.make_tiny_bundle(tmp_path / "tiny"))], "listen": address, "store": "memory",
        "http_listen": "off", "metrics_listen": "off", "token": "s3cret", "drain_s": 600.0,
    }  # fmt: skip
    controller = asyncio.create_task(serve(read_settings(flags, {}, None), stop))
    async with asyncio.timeout(30), dial(address, Security(token="s3cret")) as channel:
        routes, who = routes_pb2_grpc.RoutesStub(channel), routes_pb2.WatchRequest(gateway_id="g")
        tables = routes.Watch(who, wait_for_ready=True)
        waiting = asyncio.create_task(tables.read())  # without workers there is none; asked before the others
        calls = [
            access_pb2_grpc.AccessStub(channel).Watch(access_pb2.WatchAccessRequest(), wait_for_ready=True),
            routes.WatchBundles(who, wait_for_ready=True),
        ]
        assert [bool(await call.read()) for call in calls] == [True] * 2
        stop.set()
        await controller
        assert await waiting is grpc.aio.EOF
        for call in calls:
            assert await call.read() is grpc.aio.EOF
        assert [await call.code() for call in (tables, *calls)] == [grpc.StatusCode.OK] * 3
