"""What a mesh on one host adds to a MoE layer of the real model, against a bare fan-out echo of the same bytes.

`mesh` runs the routed experts of a layer on the three workers of a real `expertmesh up`, `local` runs the same experts
in this process, `echo` sends the same bytes to three bare echo processes and reads them back. All three walk through
the layers with the model's own rows. Time added = mesh - local, per round. Bars: at most 1.5 x the echo on the same
transport, at batch 1 and 16; unix at least 1.8 x faster per layer than gRPC.

Every process computes with one thread. On fewer cores than processes, `local` and the gateway's share of `mesh` compete
with nobody, the workers with each other; on more, the workers overlap and the time added can be negative.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import uvloop
from bench_decode import PROMPT, all_local, machine, summary
from bench_mesh import State, mesh
from echo_clients import grpc_echo, socket_echo
from echo_servers import Child
from interleaving import Arm, interleave, publish, ratio
from threadpoolctl import threadpool_limits

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.clock import SystemClock
from expertmesh_common.security import Security, dial
from expertmesh_controller.cluster.remote_routes import RemoteRoutes
from expertmesh_controller.cluster.routes import RouteTable
from expertmesh_controller.gateway.batching.forward import Forward
from expertmesh_controller.gateway.dispatch.links.opening import Caller
from expertmesh_controller.gateway.dispatch.links.pool import LinkPool
from expertmesh_controller.gateway.dispatch.plane import ExpertPlane
from expertmesh_controller.gateway.gating.gate import load_gates
from expertmesh_controller.gateway.text.codec import TextCodec
from expertmesh_controller.gateway.trunk.executor import Chunk, Work
from expertmesh_controller.gateway.trunk.local import LocalTrunk

WORKERS = 3
BATCHES = (1, 16)
TRANSPORTS = {"unix": "socket", "grpc": "grpc"}


class Recorder:
    """Stands between trunk and plane and keeps the rows of every layer."""

    def __init__(self, plane: ExpertPlane) -> None:
        self._plane = plane
        self.rows: list[np.ndarray] = []

    @property
    def active(self) -> np.ndarray:
        return self._plane.active

    def begin(self, rows: int, share: float) -> None:
        self._plane.begin(rows, share)

    def run(self, layer: int, rows: np.ndarray, deadline: float, patience_s: float) -> np.ndarray:
        self.rows.append(rows.copy())
        return self._plane.run(layer, rows, deadline, patience_s)


def real_rows(bundle: Bundle, precision: str, plane: ExpertPlane) -> list[np.ndarray]:
    """The rows that each layer's experts see for a prompt, float32 [tokens, hidden] each."""
    trunk = LocalTrunk(bundle, precision, slots=1, context_tokens=256, chunk_tokens=64)
    recorder = Recorder(plane)
    ids = np.array(TextCodec(bundle).encode(PROMPT * 4)[:64])
    nobody = np.empty(0, np.int64), np.empty(0, np.int32)
    forward = Forward(trunk, recorder, bundle.manifest.layers, 60.0)
    forward.run(Work(*nobody, Chunk(0, 0, ids, ends_prompt=True)), time.monotonic() + 60)
    return recorder.rows


def table_of(state: State) -> RouteTable:
    async def first() -> RouteTable:
        async with dial(state.address, Security(token=state.token)) as channel:
            async for table in RemoteRoutes(channel, "bench", SystemClock()).watch():
                return table
        raise RuntimeError("no route table")

    return asyncio.run(first())


def remote_plane(bundle: Bundle, state: State, transport: str) -> ExpertPlane:
    manifest = bundle.manifest
    pool = LinkPool(Caller("bench", Security(token=state.token), transport))  # type: ignore[arg-type]
    plane = ExpertPlane(manifest.name, manifest.layers, load_gates(bundle), pool)
    plane.update(table_of(state))
    for layer in manifest.layers:  # opens every link
        plane.run(layer.index, np.zeros((8, manifest.trunk.hidden), np.float32), time.monotonic() + 20)
    return plane


def walk(name: str, plane: ExpertPlane, rows: Sequence[np.ndarray], batch: int) -> Arm:
    """One layer per step, with the next tokens' rows every time round."""
    starts = range(0, len(rows[0]) - batch + 1, batch)
    steps = itertools.cycle([(layer, rows[layer][s : s + batch]) for s in starts for layer in range(len(rows))])

    def step() -> None:
        layer, given = next(steps)
        plane.run(layer, given, time.monotonic() + 10)

    return Arm(name, step)


def frame_bytes(plane: ExpertPlane, arm: Arm) -> int:
    """Mean bytes of one request frame."""
    before = plane.traffic()
    arm.measure(60)
    after = plane.traffic()
    return (after.bytes_sent - before.bytes_sent) // (after.frames - before.frames)


def bare_echo(name: str, kind: str, servers: Sequence[Child], size: int) -> Arm:
    if kind == "socket":
        return socket_echo(name, servers, size)
    return grpc_echo(name, servers, size, uvloop.new_event_loop())


def added(samples: dict[str, list[list[float]]], transport: str) -> dict[str, float]:
    """(mesh - local) / echo per round, of the means: layers differ, and each round covers them alike."""
    turns = zip(samples[f"{transport} mesh"], samples["local"], samples[f"{transport} echo"], strict=True)
    return summary([(statistics.fmean(m) - statistics.fmean(n)) / statistics.median(e) for m, n, e in turns])


def measure(bundle: Bundle, precision: str, options: argparse.Namespace) -> dict[str, object]:
    local = all_local(bundle, precision)
    rows = real_rows(bundle, precision, local)
    found: dict[str, object] = {}
    children: list[Child] = []
    with tempfile.TemporaryDirectory() as folder, mesh(options.bundle, "auto", precision, Path(folder)) as state:
        planes = {transport: remote_plane(bundle, state, transport) for transport in TRANSPORTS}
        try:
            for batch in BATCHES:
                arms = [walk("local", local, rows, batch)]
                for transport, kind in TRANSPORTS.items():
                    arm = walk(f"{transport} mesh", planes[transport], rows, batch)
                    size = frame_bytes(planes[transport], arm)
                    echoes = [Child(kind) for _ in range(WORKERS)]
                    children += echoes
                    name = f"{transport} echo"
                    loop = uvloop.new_event_loop()
                    arms += [
                        arm,
                        socket_echo(name, echoes, size) if kind == "socket" else grpc_echo(name, echoes, size, loop),
                    ]
                samples = interleave(arms, options.rounds, 240)
                found[f"batch {batch}"] = {
                    "mean_us": {n: summary([statistics.fmean(turn) for turn in turns]) for n, turns in samples.items()},
                    "added_over_echo": {transport: added(samples, transport) for transport in TRANSPORTS},
                    "grpc_over_unix": ratio(samples, "grpc mesh", "unix mesh"),
                }
        finally:
            for child in children:
                child.stop()
            for plane in planes.values():
                plane.close()
    local.close()
    return found


def ratios(precision: str, found: dict[str, object]) -> list[dict[str, object]]:
    out: list[dict[str, object]] = []
    for batch, one in found.items():
        for transport, value in one["added_over_echo"].items():
            what = f"time added per layer over a fan-out echo, {transport}, {batch}, {precision}"
            out.append({"what": what, "value": value, "at_most": 1.5})
        what = f"gRPC over unix per layer, {batch}, {precision}"
        out.append({"what": what, "value": one["grpc_over_unix"], "at_least": 1.8})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("build/demo-bundle"))
    parser.add_argument("--precisions", default="fp32,int4")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    bundle = Bundle(options.bundle)
    result: dict[str, object] = {"machine": machine(), "ratios": []}
    with threadpool_limits(1):
        for precision in options.precisions.split(","):
            found = measure(bundle, precision, options)
            result[precision] = found
            result["ratios"] += ratios(precision, found)
    publish("layer", result)


if __name__ == "__main__":
    main()
