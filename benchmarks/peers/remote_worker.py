"""A worker process that holds every expert of a bundle, and its caller: `remote_worker.py BUNDLE SPIN_US NUMERICS` says
where
it listens.

Runtime, doors and loop are those of `expertmesh worker`; only who orders its loads is left out.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from resident_bundle import resident

from expertmesh_api.v1 import experts_pb2
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import Manifest
from expertmesh_common.bundle.parts import Numerics
from expertmesh_common.channel.host import host_id
from expertmesh_common.huge_pages import collapse, place_side_by_side
from expertmesh_common.running import run_service
from expertmesh_common.security import Security
from expertmesh_controller.cluster.routes import EndpointAddress, Epoch, InstanceRoute, RouteTable, WorkerRoute
from expertmesh_worker.channel.experts_service import Identity
from expertmesh_worker.runtime.executing import Runtime
from expertmesh_worker.runtime.lanes import Lanes
from expertmesh_worker.serving_experts import Behind, open_doors

__all__ = ["RemoteWorker"]

NAME, GENERATION, HERE = "w0", "g", "127.0.0.1"


class RemoteWorker:
    """The process, which ends with this one. `table` sends every expert of the bundle to it."""

    def __init__(self, folder: Path, spin_us: int, numerics: Numerics) -> None:
        command = [sys.executable, __file__, str(folder), str(spin_us), numerics]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the worker ended before it listened")
        self.resident_mb: float = json.loads(line)["resident_mb"]
        endpoint = EndpointAddress("grpc", json.loads(line)["address"])
        route = WorkerRoute(NAME, GENERATION, (endpoint,), host_id(), 1.0)
        self.table = RouteTable(Epoch(1, 1), (route,), instances(Bundle(folder).manifest))


def instances(manifest: Manifest) -> tuple[InstanceRoute, ...]:
    (precision,) = manifest.precisions
    places = [(layer.index, expert.index) for layer in manifest.layers for expert in layer.experts]
    return tuple(InstanceRoute(manifest.name, *place, NAME, precision) for place in places)


async def work(bundle: Bundle, spin_us: int, numerics: Numerics, stop: asyncio.Event) -> None:
    """Until stdin ends."""
    place_side_by_side()
    lanes = Lanes(1)
    residents = resident(bundle, *bundle.manifest.precisions, lanes, numerics)
    collapse()
    runtime = Runtime(residents, lanes)
    behind = Behind(runtime, runtime.recurring, experts_pb2.StatResponse, bundle.blobs)
    identity = Identity(NAME, GENERATION, host_id())
    doors = await open_doors(behind, identity, Security(), listen=f"{HERE}:0", advertise=HERE, spin_us=spin_us)
    held = {"address": doors.endpoint.address, "resident_mb": residents.used_bytes / 1e6}
    print(json.dumps(held), flush=True)
    asyncio.get_running_loop().add_reader(sys.stdin, stop.set)
    await stop.wait()
    await doors.close(1.0)


if __name__ == "__main__":
    run_service(partial(work, Bundle(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3]))
