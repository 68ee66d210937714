"""A model of tiny numpy experts for expert planes: its tables, its rows, and what they must come to."""

from __future__ import annotations

import time

import numpy as np

from expertmesh_common.bundle.manifest import Blob
from expertmesh_common.bundle.manifest import Gate as GateConfig
from expertmesh_common.channel.frame import Request, model_key
from expertmesh_controller.cluster.routes import Epoch, InstanceRoute, RouteTable
from rigs.expert_hosts import expert_weights, swiglu

LAYERS, EXPERTS, HIDDEN, WIDTH = 2, 4, 12, 8
SIZES = (LAYERS, EXPERTS, HIDDEN, WIDTH)
WEIGHTS = expert_weights(*SIZES)
EVERYTHING = sorted(WEIGHTS)
BLOB = Blob(digest="0" * 64, size_bytes=1)
CONFIG = GateConfig(scorer="linear", picker="threshold", threshold=0.0, min_k=1, max_k=EXPERTS, weights=BLOB)
ROUTER = np.random.default_rng(3).standard_normal((HIDDEN, EXPERTS)).astype(np.float32)
TRANSPORTS = ["unix", "tcp", "grpc"]


def table(n, *holdings):
    """Epoch (1, n) with (worker route, held experts) pairs."""
    instances = [InstanceRoute("m", *at, route.worker_id, "fp32") for route, held in holdings for at in held]
    return RouteTable(Epoch(1, n), tuple(route for route, _ in holdings), tuple(instances))


def some_rows(count=5, seed=0):
    return np.random.default_rng(seed).standard_normal((count, HIDDEN)).astype(np.float32)


def dense(layer, rows):
    scores = rows @ ROUTER
    picked = scores >= 0
    picked[np.arange(len(rows)), scores.argmax(axis=1)] = True
    return sum(np.where(picked[:, [e]], swiglu(rows, WEIGHTS[layer, e]), 0) for e in range(EXPERTS))


def soon(seconds=15.0):
    return time.monotonic() + seconds


def check(plane, layer, rows, within_s=15.0):
    np.testing.assert_allclose(plane.run(layer, rows, soon(within_s)), dense(layer, rows), atol=1e-5)


def follow(plane, routes):
    """Give the plane a table and wait until every worker's link is up."""
    plane.update(routes)
    pool, end = plane._pool, soon()
    while not all(pool.link(worker) for worker in routes.workers):
        count = pool.bell.count
        assert all(pool.link(worker) for worker in routes.workers) or pool.bell.wait_beyond(
            count, end - time.monotonic()
        )


def ask(rows, seq=1):
    one = np.zeros(1, np.uint32)
    return Request(
        seq, (1, 1), model_key("m"), 0, 0, {"rows": rows}, one, one.astype(np.uint16), np.ones(1, np.float32)
    )
