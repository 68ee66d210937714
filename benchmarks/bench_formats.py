"""Microseconds per call of one expert at every precision, by rows per call, weights cycled out of cache.

All precisions of a size are measured in turn within each round. Sessions are those of the worker, one thread each.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from interleaving import Arm, interleave, medians, publish, ratio
from rich.console import Console
from rich.table import Table

from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.bundle.manifest import PRECISIONS, Precision
from expertmesh_common.bundle.tensors import encode_tensors
from expertmesh_common.graphs.expert import ExpertShape
from expertmesh_common.graphs.matrices import common_block
from expertmesh_forge.formats import encode_matrix
from expertmesh_worker.providers import Provider, provider
from expertmesh_worker.runtime.instance import ExpertInstance
from expertmesh_worker.runtime.lanes import Lanes
from expertmesh_worker.runtime.residents import return_free_memory

SIZES = ((576, 96), (768, 512), (2048, 1408))
ROWS = (1, 4, 16, 64)
# More than the last level of any cache that a core reaches here; half as much again for what the kernels keep.
CYCLED_BYTES = 192 * 2**20


def stored(shape: ExpertShape, precision: Precision, folder: Path) -> Path:
    random = np.random.default_rng(0)
    block = common_block(shape.hidden, shape.width)
    tensors = {}
    for name, out, inner in (("gate_up", 2 * shape.width, shape.hidden), ("down", shape.hidden, shape.width)):
        weights = (random.standard_normal((out, inner)) / np.sqrt(inner)).astype(np.float32)
        tensors |= encode_matrix(name, weights, precision, block)
    store = BlobStore(folder)
    return store.path(store.put(encode_tensors(tensors)).digest)


def opened(shape: ExpertShape, folder: Path, using: Provider, lanes: Lanes) -> list[ExpertInstance]:
    """Copies of one expert whose weights together leave every cache before the first is used again."""
    path = stored(shape, shape.precision, folder)  # type: ignore[arg-type]
    copies = max(4, CYCLED_BYTES // path.stat().st_size) if shape.precision in {"int8", "int4"} else 0
    copies = copies or max(4, CYCLED_BYTES // (12 * shape.hidden * shape.width))
    found = [ExpertInstance(shape, path, using, lanes.all) for _ in range(min(copies, 400))]
    return_free_memory()
    return found


def arm(precision: str, instances: list[ExpertInstance], rows: np.ndarray) -> Arm:
    turn: Iterator[ExpertInstance] = itertools.cycle(instances)
    return Arm(precision, lambda: next(turn).seats[0].compute(rows))


def measure(hidden: int, width: int, rounds: int, folder: Path) -> dict[str, object]:
    using, lanes = provider("cpu"), Lanes(1)
    experts = {p: opened(ExpertShape(hidden, width, p), folder, using, lanes) for p in PRECISIONS}
    found: dict[str, object] = {}
    for count in ROWS:
        rows = np.random.default_rng(count).standard_normal((count, hidden)).astype(np.float32)
        arms = [arm(precision, instances, rows) for precision, instances in experts.items()]
        samples = interleave(arms, rounds, 120 if hidden * width < 10**6 else 40)
        over_fp32 = {p: ratio(samples, p, "fp32") for p in PRECISIONS}
        found[f"{count} rows"] = {"us": medians(samples), "over_fp32": over_fp32}
    return found


def show(size: str, found: dict[str, object]) -> None:
    table = Table("precision", *(f"{name}, us" for name in found), title=f"{size}: median call (over fp32)")
    for precision in PRECISIONS:
        cells = [
            f"{one['us'][precision]['p50_us']:.0f} ({one['over_fp32'][precision]['median']:.2f})"
            for one in found.values()
        ]
        table.add_row(precision, *cells)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    result: dict[str, object] = {}
    for hidden, width in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            result[f"{hidden}x{width}"] = measure(hidden, width, options.rounds, Path(folder))
    publish("formats", result)
    for size, found in result.items():
        show(size, found)


if __name__ == "__main__":
    main()
