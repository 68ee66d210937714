"""Expert planes and links over identity workers, as the benchmarks use them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from echo_servers import EXPERTS, HIDDEN, Child

from expertmesh_common.bundle.manifest import Blob, Expert, Layer
from expertmesh_common.bundle.manifest import Gate as GateConfig
from expertmesh_common.channel.host import host_id
from expertmesh_controller.cluster.routes import EndpointAddress, Epoch, InstanceRoute, RouteTable, WorkerRoute
from expertmesh_controller.gateway.dispatch.links.base import Link
from expertmesh_controller.gateway.dispatch.links.opening import Caller, open_link
from expertmesh_controller.gateway.dispatch.links.pool import LinkPool
from expertmesh_controller.gateway.dispatch.links.watchdog import Watchdog
from expertmesh_controller.gateway.dispatch.plane import ExpertPlane
from expertmesh_controller.gateway.gating.gate import Gate

_BLOB = Blob(digest="0" * 64, size_bytes=1)


def route(child: Child, worker_id: str) -> WorkerRoute:
    endpoint = EndpointAddress("grpc", f"127.0.0.1:{child.place['port']}")
    return WorkerRoute(worker_id, "g", (endpoint,), host_id(), 1.0)


def one_link(child: Child, transport: str, spin_us: int = 0) -> Link:
    caller = Caller("bench", transport=transport, spin_us=spin_us)  # type: ignore[arg-type]
    return open_link(route(child, "w0"), caller, Watchdog())


def plane(children: Sequence[Child], transport: str) -> ExpertPlane:
    """One layer whose gate picks every expert for every row, so every worker is touched."""
    config = GateConfig(scorer="linear", picker="threshold", threshold=-1e9, max_k=EXPERTS, weights=_BLOB)
    experts = tuple(Expert(index=e, width=96, frequency=0.7, blobs={}) for e in range(EXPERTS))
    layer = Layer(index=0, kind="moe", gate=config, shared_width=768, total_width=1536, experts=experts)
    router = np.random.default_rng(0).standard_normal((HIDDEN, EXPERTS)).astype(np.float32)
    gate = Gate(config, {"router": router, "bias": np.zeros(EXPERTS, np.float32)})
    pool = LinkPool(Caller("bench", transport=transport))  # type: ignore[arg-type]
    made = ExpertPlane("bench", [layer], [gate], pool)
    workers = tuple(route(child, f"w{n}") for n, child in enumerate(children))
    instances = tuple(InstanceRoute("bench", 0, e, f"w{e % len(children)}", "fp32") for e in range(EXPERTS))
    made.update(RouteTable(Epoch(1, 1), workers, instances))
    made.run(0, np.zeros((1, HIDDEN), np.float32), time.monotonic() + 10)
    return made
