"""Servers for the hop benchmarks, each a child process: bare echoes, and a worker's expert channel.

`python benchmarks/echo_servers.py socket|cold|grpc|worker|spinning` prints one JSON line with where it listens.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import grpc
import numpy as np

from expertmesh_api.v1 import experts_pb2
from expertmesh_common.channel.host import host_id
from expertmesh_common.clock import SystemClock
from expertmesh_common.running import run_service
from expertmesh_common.security import Security
from expertmesh_common.serving import Serving
from expertmesh_worker.channel.experts_service import ExpertsService, Identity
from expertmesh_worker.channel.stream_server import StreamServer
from expertmesh_worker.channel.tickets import Tickets
from expertmesh_worker.runtime.executing import Runtime
from expertmesh_worker.runtime.lanes import Lane, Lanes
from expertmesh_worker.runtime.residents import Residents

ROOT = Path(__file__).resolve().parents[1]
HIDDEN, EXPERTS = 576, 8
SPIN_US = 1000  # of workers and links that poll before they sleep
COLD_BYTES = 2 * 663_552  # two fp32 experts of the demo
PACKAGES = ("client", "common", "controller", "worker", "protos/generated")


class IdentitySeat:
    """One lane's place at an expert that returns its row."""

    def __init__(self, lane: Lane) -> None:
        self.row_in, self.row_out = lane.buffers(HIDDEN)

    def one(self) -> None:
        self.row_out[:] = self.row_in

    def compute(self, rows: np.ndarray) -> np.ndarray:
        return rows.copy()


@dataclass
class IdentityExpert:
    """In the place of a loaded expert: all that the runtime asks of one."""

    seats: tuple[IdentitySeat, ...]
    hidden: int = HIDDEN


class IdentityResidents(Residents):
    """A worker that holds identity experts and nothing else; everything around them is the real runtime."""

    def __init__(self, lanes: Lanes) -> None:
        super().__init__(0, None, lanes)
        seats = tuple(IdentitySeat(lane) for lane in lanes.all)
        self._all = {index: IdentityExpert(seats) for index in range(EXPERTS)}

    def layer(self, model: int, layer: int) -> dict[int, IdentityExpert]:
        del model, layer  # the same everywhere
        return self._all


class Child:
    """A server process; `place` is what it printed."""

    def __init__(self, kind: str, worker_id: str = "w0") -> None:
        paths = os.pathsep.join(str(ROOT / p) for p in PACKAGES)
        self._process = subprocess.Popen(
            [sys.executable, __file__, kind, worker_id],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
        assert self._process.stdout is not None
        self.place = json.loads(self._process.stdout.readline())

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate()


def say(**place: object) -> None:
    print(json.dumps(place), flush=True)


def serve_socket(reads_bytes: int = 0) -> None:
    """A blocking echo: one recv and one send per message, nothing else.

    With `reads_bytes` it first reads as many bytes of memory, others every time, as a worker reads weights; the seconds
    that this took are the last eight bytes of the answer.
    """
    memory = np.ones((128, max(reads_bytes, 8) // 8))
    turn = 0
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = f"{folder}/echo"
        listener.bind(path)
        listener.listen()
        say(path=path)
        connection, _ = listener.accept()
        buffer = memoryview(bytearray(1 << 20))
        while True:
            # The first four bytes are the length, as an echo must know where a message ends.
            have = connection.recv_into(buffer)
            if not have:
                return
            total = int.from_bytes(buffer[:4], "little")
            while have < total:
                have += connection.recv_into(buffer[have:])
            if reads_bytes:
                start = time.perf_counter()
                memory[turn].sum()
                turn = (turn + 1) % len(memory)
                struct.pack_into("<d", buffer, total - 8, time.perf_counter() - start)
            connection.send(buffer[:total])


async def serve_grpc(stop: asyncio.Event) -> None:
    """The barest grpc.aio bidi echo: raw bytes, no interceptor."""

    async def echo(messages, _context):
        async for message in messages:
            yield message

    server = grpc.aio.server()
    handlers = {"Echo": grpc.stream_stream_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare.Echo", handlers),))
    say(port=server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await stop.wait()
    await server.stop(None)


async def serve_worker(worker_id: str, spin_us: int, stop: asyncio.Event) -> None:
    """The expert channel as a worker runs it."""
    lanes = Lanes(1)
    host, tickets, serving = Runtime(IdentityResidents(lanes), lanes), Tickets(SystemClock()), Serving(Security())
    streams = StreamServer(host, tickets, shortcut=host.recurring, spin_us=spin_us)
    identity = replace(
        Identity(worker_id, "g", host_id()), streams=(streams.listen_unix(), streams.listen_tcp("127.0.0.1"))
    )
    ExpertsService(host, tickets, identity, experts_pb2.StatResponse, host.recurring).add_to(serving.server)
    say(port=await serving.start("127.0.0.1:0"))
    await stop.wait()
    await serving.server.stop(None)
    await asyncio.to_thread(streams.stop, 0.1)


def main() -> None:
    kind, worker_id = sys.argv[1:]
    if kind in {"socket", "cold"}:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder of its socket is removed
        serve_socket(COLD_BYTES if kind == "cold" else 0)
    else:
        spin_us = SPIN_US if kind == "spinning" else 0
        run_service(serve_grpc if kind == "grpc" else partial(serve_worker, worker_id, spin_us))


if __name__ == "__main__":
    main()
