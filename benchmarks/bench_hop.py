"""One hop to one worker with an identity expert, against a bare echo of the same bytes on the same transport.

Bars: gRPC at most 1.3 x a bare grpc.aio bidi echo, unix at most 2.5 x a bare blocking socket echo (p50); the same for
unix where both ends poll for 1 ms before they sleep, which says something only with a core for each of them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

import numpy as np
import uvloop
from echo_clients import cold_echo_us, grpc_echo, socket_echo
from echo_servers import SPIN_US, Child
from expert_planes import HIDDEN, one_link
from interleaving import Arm, interleave, medians, publish, ratio

from expertmesh_common.channel.frame import encode_request, model_key
from expertmesh_common.channel.layout import chunk_bytes
from expertmesh_controller.gateway.dispatch.exchange import Call, Failure, HopTimeout, Task
from expertmesh_controller.gateway.dispatch.links.base import Link
from expertmesh_controller.gateway.dispatch.plan import Message
from expertmesh_controller.gateway.dispatch.recurring import LayerPost, exchange_row
from expertmesh_controller.gateway.gating.routing import RowRouting

SPINNING = "unix, spinning"
BARS = {"grpc": 1.3, "unix": 2.5, SPINNING: 2.5}


def call(seq: int) -> Call:
    return Call(seq, (1, 1), Task(model_key("bench"), 0, "output", np.ones((1, HIDDEN), np.float32)))


def message() -> Message:
    """One row for one expert."""
    return Message(0, None, np.zeros(1, np.uint32), np.zeros(1, np.uint16), np.ones(1, np.float32))


def hop(name: str, link: Link) -> Arm:
    """As the gateway does it for a row of a running answer."""
    prepared = LayerPost((1, 1), np.zeros(1, np.intp), [link]).address(call(0).task, RowRouting((0,), (1.0,)))
    assert prepared is not None
    seqs = itertools.count(1)

    def step() -> None:
        (outcome,) = exchange_row(call(next(seqs)), prepared, HopTimeout(), time.monotonic() + 2)
        assert not isinstance(outcome, Failure)

    return Arm(name, step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--count", type=int, default=400)
    options = parser.parse_args()
    size = chunk_bytes(encode_request(call(1).request(message(), 2000)))
    children = {kind: Child(kind) for kind in ("socket", "cold", "grpc", "worker", "spinning")}
    try:
        arms = [
            socket_echo("socket echo", [children["socket"]], size),
            grpc_echo("grpc echo", [children["grpc"]], size, uvloop.new_event_loop()),
            *(hop(kind, one_link(children["worker"], kind)) for kind in ("unix", "tcp", "grpc")),
            hop(SPINNING, one_link(children["spinning"], "unix", SPIN_US)),
        ]
        samples = interleave(arms, options.rounds, options.count)
        cold = cold_echo_us(children["cold"], size, options.rounds * options.count)
    finally:
        for child in children.values():
            child.stop()
    ratios = [
        {"what": f"identity hop over a bare echo, {kind}", "value": ratio(samples, kind, echo), "at_most": BARS[kind]}
        for kind, echo in (("unix", "socket echo"), (SPINNING, "socket echo"), ("grpc", "grpc echo"))
    ]
    publish(
        "hop",
        {
            "frame_bytes": size,
            "arms": medians(samples),
            "cold_echo_us": round(statistics.median(cold), 1),
            "ratios": ratios,
        },
    )


if __name__ == "__main__":
    main()
