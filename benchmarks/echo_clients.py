"""Clients of the bare echoes, to one server or fanned out: all messages are sent before the first answer is read."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Sequence

import grpc
from echo_servers import Child
from interleaving import Arm


def socket_echo(name: str, servers: Sequence[Child], message_bytes: int) -> Arm:
    """Blocking unix sockets, one send and usually one recv per message."""
    connections = []
    for server in servers:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(server.place["path"])
        connections.append(connection)
    message = message_bytes.to_bytes(4, "little") + bytes(message_bytes - 4)
    buffer = memoryview(bytearray(message_bytes))

    def step() -> None:
        for connection in connections:
            connection.send(message)
        for connection in connections:
            have = connection.recv_into(buffer)
            while have < message_bytes:
                have += connection.recv_into(buffer[have:])

    return Arm(name, step)


def cold_echo_us(server: Child, message_bytes: int, count: int) -> list[float]:
    """Microseconds of echoes by a process that reads memory before it answers, without the reading itself."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(server.place["path"])
        message = message_bytes.to_bytes(4, "little") + bytes(message_bytes - 4)
        buffer = memoryview(bytearray(message_bytes))
        out = []
        for _ in range(count):
            start = time.perf_counter()
            connection.send(message)
            have = connection.recv_into(buffer)
            while have < message_bytes:
                have += connection.recv_into(buffer[have:])
            out.append((time.perf_counter() - start - struct.unpack_from("<d", buffer, message_bytes - 8)[0]) * 1e6)
        return out


def grpc_echo(name: str, servers: Sequence[Child], message_bytes: int, loop: asyncio.AbstractEventLoop) -> Arm:
    """One kept-open grpc.aio bidi stream per server on uvloop, raw bytes."""
    calls = loop.run_until_complete(_open(servers))
    message = bytes(message_bytes)

    async def step() -> None:
        for call in calls:
            await call.write(message)
        for call in calls:
            await call.read()

    return Arm(name, step, loop)


async def _open(servers: Sequence[Child]) -> list[grpc.aio.StreamStreamCall]:
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{server.place['port']}") for server in servers]
    return [channel.stream_stream("/bare.Echo/Echo")() for channel in channels]
