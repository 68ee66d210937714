"""This project's engine that holds no experts, which are on one worker process: `... MODEL unix|tcp|local`.

`local` keeps them in the engine's own process. With `--spin-us` both ends poll for so long before they sleep;
`--numerics` are those of the experts.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from arm_ours import CONTEXT_TOKENS, SLOTS, Ours
from bench_decode import all_local, make_engine
from remote_worker import RemoteWorker
from serving import serve
from threadpoolctl import threadpool_limits

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.parts import NUMERICS, Numerics
from expertmesh_common.huge_pages import collapse
from expertmesh_common.running import tuned_runner
from expertmesh_controller.gateway.dispatch.links.opening import Caller
from expertmesh_controller.gateway.dispatch.links.pool import LinkPool
from expertmesh_controller.gateway.dispatch.plane import ExpertPlane
from expertmesh_controller.gateway.gating.gate import load_gates

TRANSPORTS = ("unix", "tcp", "local")


def remote_plane(bundle: Bundle, worker: RemoteWorker, transport: str, spin_us: int) -> ExpertPlane:
    """An expert plane whose link is up."""
    manifest = bundle.manifest
    pool = LinkPool(Caller("bench", transport=transport, spin_us=spin_us))  # type: ignore[arg-type]
    plane = ExpertPlane(manifest.name, manifest.layers, load_gates(bundle), pool)
    plane.update(worker.table)
    plane.run(0, np.zeros((1, manifest.trunk.hidden), np.float32), time.monotonic() + 20)
    return plane


class OursRemote(Ours):
    def __init__(self, folder: Path, threads: int, transport: str, spin_us: int, numerics: Numerics) -> None:
        threadpool_limits(threads)
        bundle = Bundle(folder)
        (precision,) = bundle.manifest.precisions
        self.about: dict[str, object] = {"version": version("expertmesh"), "weights": precision, "numerics": numerics}
        if transport == "local":
            self.plane = all_local(bundle, precision, numerics)
        else:
            self.worker = RemoteWorker(folder, spin_us, numerics)
            self.plane = remote_plane(bundle, self.worker, transport, spin_us)
            self.about["experts"] = f"{self.worker.resident_mb:.0f} MB on the worker, over {transport}"
        sizes = {"slots": SLOTS, "context_tokens": CONTEXT_TOKENS}
        self.engine = make_engine(bundle, precision, self.plane, threads, **sizes)
        self.runner = tuned_runner()
        self.runner.run(self._start())
        collapse()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("model")
    parser.add_argument("transport", choices=TRANSPORTS)
    parser.add_argument("--spin-us", type=int, default=0)
    parser.add_argument("--numerics", choices=NUMERICS, default="fast")
    own, rest = parser.parse_known_args()
    serve(partial(OursRemote, transport=own.transport, spin_us=own.spin_us, numerics=own.numerics), [own.model, *rest])
