"""Machines that are far: whatever crosses the network arrives late, and must arrive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from expertmesh import AsyncClient, ResumePolicy
from expertmesh_common.certificates import mint_development_ca
from expertmesh_common.clock import SystemClock
from expertmesh_common.security import Security, dial
from expertmesh_common.serving import Serving
from expertmesh_controller.control.store.memory_store import MemoryStore
from models.control_plane import control_plane
from models.tiny_bundle import make_tiny_bundle

ONE_WAY_S = 0.2  # a satellite, or a queue that somebody's upload has filled


async def _late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            loop.call_later(ONE_WAY_S, writer.write, data)


@contextlib.asynccontextmanager
async def far(address: str) -> AsyncIterator[str]:
    """The same server, from far away."""
    host, _, port = address.rpartition(":")
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        writers.extend((writer, back))
        for pair in ((reader, back), (there, writer)):
            tasks.add(asyncio.create_task(_late(*pair)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def check(channel: grpc.aio.Channel) -> None:
    """One call that is given up as soon as a connection fails, as most calls are."""
    await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "mutual TLS"])
async def test_a_far_service_is_reached_at_the_first_attempt(tmp_path: Path, secure: bool) -> None:
    security = Security(mint_development_ca(tmp_path, ["127.0.0.1"])) if secure else Security()
    serving = Serving(security)
    address = f"127.0.0.1:{await serving.start('127.0.0.1:0')}"
    async with far(address) as there, dial(there, security) as channel:
        await check(channel)
    await serving.stop(0)


async def test_a_far_mesh_is_reached_by_the_sdk_at_the_first_attempt(tmp_path: Path) -> None:
    async with (
        control_plane(make_tiny_bundle(tmp_path), MemoryStore(SystemClock())) as plane,
        far(plane.address) as there,
        AsyncClient(there, resume=ResumePolicy(first_attempts=1)) as client,
    ):
        assert await client.nodes() == ()


async def calls_in_vain(port: int, count: int) -> None:
    """Return when somebody has connected to the port so often; nothing answers there."""
    calls = asyncio.Semaphore(0)

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        calls.release()

    async with asyncio.timeout(20), await asyncio.start_server(accept, "127.0.0.1", port):
        for _ in range(count):
            await calls.acquire()


async def test_a_service_that_is_back_is_found_again_within_a_second() -> None:
    serving = Serving(Security())
    port = await serving.start("127.0.0.1:0")
    async with dial(f"127.0.0.1:{port}", Security()) as channel:
        await check(channel)
        await serving.stop(0)
        with pytest.raises(grpc.aio.AioRpcError):
            await check(channel)
        await calls_in_vain(port, 3)
        serving = Serving(Security())
        await serving.start(f"127.0.0.1:{port}")
        async with asyncio.timeout(3.0):
            stub = health_pb2_grpc.HealthStub(channel)
            await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
    await serving.stop(0)
