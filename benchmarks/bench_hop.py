"""One hop to one worker with identity experts, against a bare echo of the same bytes on the same transport.

Bars: gRPC at most 1.3 x a bare grpc.aio bidi echo, unix at most 2.5 x a bare blocking socket echo (p50).
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import uvloop
from echo_clients import grpc_echo, socket_echo
from echo_servers import Child
from expert_planes import EXPERTS, HIDDEN, one_link
from interleaving import Arm, interleave, medians, publish, ratio

from expertmesh_common.channel.frame import Request, encode_request, model_key
from expertmesh_common.channel.layout import chunk_bytes
from expertmesh_controller.gateway.dispatch.links.base import Link

BARS = {"grpc": 1.3, "unix": 2.5}


def request(seq: int) -> Request:
    row, expert = np.zeros(EXPERTS, np.uint32), np.arange(EXPERTS, dtype=np.uint16)
    rows = {"rows": np.ones((1, HIDDEN), np.float32)}
    return Request(seq, (1, 1), model_key("bench"), 0, 2000, rows, row, expert, np.ones(EXPERTS, np.float32))


def hop(name: str, link: Link) -> Arm:
    asked = request(1)

    def step() -> None:
        expires_at = time.monotonic() + 2
        link.post(asked, expires_at)
        link.take(expires_at)

    return Arm(name, step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--count", type=int, default=400)
    options = parser.parse_args()
    size = chunk_bytes(encode_request(request(1)))
    children = {kind: Child(kind) for kind in ("socket", "grpc", "worker")}
    try:
        arms = [
            socket_echo("socket echo", [children["socket"]], size),
            grpc_echo("grpc echo", [children["grpc"]], size, uvloop.new_event_loop()),
            *(hop(kind, one_link(children["worker"], kind)) for kind in ("unix", "tcp", "grpc")),
        ]
        samples = interleave(arms, options.rounds, options.count)
    finally:
        for child in children.values():
            child.stop()
    ratios = [
        {"what": f"identity hop over a bare echo, {kind}", "value": ratio(samples, kind, echo), "at_most": BARS[kind]}
        for kind, echo in (("unix", "socket echo"), ("grpc", "grpc echo"))
    ]
    publish("hop", {"frame_bytes": size, "arms": medians(samples), "ratios": ratios})


if __name__ == "__main__":
    main()
