"""Workers in processes of their own or of this one, and planes and links that end with the test."""

from __future__ import annotations

import numpy as np
import pytest

from expertmesh_common.bundle.manifest import Expert, Layer
from expertmesh_controller.gateway.dispatch.exchange import HopTimeout
from expertmesh_controller.gateway.dispatch.links.opening import Caller, open_link
from expertmesh_controller.gateway.dispatch.links.pool import LinkPool
from expertmesh_controller.gateway.dispatch.links.watchdog import Watchdog
from expertmesh_controller.gateway.dispatch.plane import ExpertPlane
from expertmesh_controller.gateway.gating.gate import Gate
from rigs.expert_hosts import TinyHost
from rigs.expert_planes import (
    CONFIG,
    EVERYTHING,
    EXPERTS,
    LAYERS,
    ROUTER,
    SIZES,
    WEIGHTS,
    WIDTH,
)
from rigs.expert_worker import ChildWorker, ExpertWorker


@pytest.fixture
def start():
    """Starts child workers; whatever is left of them ends with the test."""
    children = []

    def run(worker_id="w0", resident=EVERYTHING, **settings):
        children.append(ChildWorker(kind="tiny", sizes=SIZES, resident=resident, worker_id=worker_id, **settings))
        return children[-1]

    yield run
    for child in children:
        child.stop()


@pytest.fixture
def start_here():
    """Starts workers on threads of this process, so that a test can look into their host."""
    workers = []

    def run(worker_id="w0", resident=EVERYTHING):
        host = TinyHost(WEIGHTS, set(resident))
        workers.append(ExpertWorker(host, worker_id))
        return workers[-1], host

    yield run
    for worker in workers:
        worker.stop(0.1)


@pytest.fixture
def make_plane():
    planes = []

    def make(transport="unix", local=None, hop_s=2.0, spin_us=0):
        experts = tuple(Expert(index=e, width=WIDTH + e, frequency=0.5, blobs={}) for e in range(EXPERTS))
        layers = [
            Layer(index=i, kind="moe", gate=CONFIG, shared_width=1, total_width=39, experts=experts)
            for i in range(LAYERS)
        ]
        gates = [Gate(CONFIG, {"router": ROUTER, "bias": np.zeros(EXPERTS, np.float32)}) for _ in range(LAYERS)]
        pool = LinkPool(Caller("g", transport=transport, spin_us=spin_us), local)
        planes.append(ExpertPlane("m", layers, gates, pool, HopTimeout(hop_s, 0.0)))
        return planes[-1]

    yield make
    for plane in planes:
        plane.close()


@pytest.fixture
def open_one():
    watchdog, links = Watchdog(), []

    def connect(route, transport, spin_us=0):
        links.append(open_link(route, Caller("g", transport=transport, spin_us=spin_us), watchdog))
        return links[-1]

    yield connect
    for link in links:
        link.close()
    watchdog.close()
