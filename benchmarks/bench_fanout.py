"""One layer over three workers with identity experts, against a bare fan-out echo of the same bytes.

`plane` is gating, dispatch, three hops and combine. Bars: at most 1.5 x the bare fan-out on the same transport, and
unix at least 1.8 x faster than gRPC.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import uvloop
from echo_clients import grpc_echo, socket_echo
from echo_servers import Child
from expert_planes import HIDDEN, plane
from interleaving import Arm, interleave, medians, publish, ratio

from expertmesh_controller.gateway.dispatch.plane import ExpertPlane

WORKERS = 3
BATCHES = (1, 16)
BARS = {"over_echo": 1.5, "grpc_over_unix": 1.8}


def layer(name: str, served: ExpertPlane, batch: int) -> Arm:
    rows = np.random.default_rng(1).standard_normal((batch, HIDDEN)).astype(np.float32)
    return Arm(name, lambda: served.run(0, rows, time.monotonic() + 5))


def frame_bytes(served: ExpertPlane, batch: int) -> int:
    """Bytes of one request frame of the plane for this batch, on average over the workers."""
    before = served.traffic()
    layer("", served, batch).measure(1)
    after = served.traffic()
    return (after.bytes_sent - before.bytes_sent) // (after.frames - before.frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--count", type=int, default=200)
    options = parser.parse_args()
    loop = uvloop.new_event_loop()
    children = [Child("worker", f"w{n}") for n in range(WORKERS)]
    ratios: list[dict[str, object]] = []
    result: dict[str, object] = {"workers": WORKERS, "ratios": ratios}
    try:
        planes = {kind: plane(children, kind) for kind in ("unix", "grpc")}
        for batch in BATCHES:
            size = frame_bytes(planes["unix"], batch)
            echoes = {kind: [Child(kind) for _ in range(WORKERS)] for kind in ("socket", "grpc")}
            children += [child for group in echoes.values() for child in group]
            arms = [
                socket_echo("socket echo", echoes["socket"], size),
                layer("unix plane", planes["unix"], batch),
                grpc_echo("grpc echo", echoes["grpc"], size, loop),
                layer("grpc plane", planes["grpc"], batch),
            ]
            samples = interleave(arms, options.rounds, options.count)
            result[f"batch {batch}"] = {"frame_bytes": size, "arms": medians(samples)}
            for kind, base in (("unix", "socket echo"), ("grpc", "grpc echo")):
                what = f"identity layer over a fan-out echo, {kind}, batch {batch}"
                value = ratio(samples, f"{kind} plane", base)
                ratios.append({"what": what, "value": value, "at_most": BARS["over_echo"]})
            what = f"gRPC over unix per identity layer, batch {batch}"
            value = ratio(samples, "grpc plane", "unix plane")
            ratios.append({"what": what, "value": value, "at_least": BARS["grpc_over_unix"]})
    finally:
        for child in children:
            child.stop()
    publish("fanout", result)


if __name__ == "__main__":
    main()
