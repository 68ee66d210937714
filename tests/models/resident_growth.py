"""Run in a process of its own: what loading experts does to this process's memory. Prints one JSON object."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import numpy as np
import psutil

from expertmesh_common.channel.frame import Request, model_key
from expertmesh_common.graphs.expert import ExpertShape
from expertmesh_worker.providers import provider
from expertmesh_worker.runtime.executing import Runtime
from expertmesh_worker.runtime.lanes import Lanes
from expertmesh_worker.runtime.residents import ExpertName, Residents

try:
    from models.made_experts import store_expert
except ModuleNotFoundError:  # started as a script: its own folder is on the path, not the one above
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from models.made_experts import store_expert


def rss_bytes():
    gc.collect()  # unloading must have given the memory back by itself
    return psutil.Process().memory_info().rss


def main(folder, shape, count, cycles, *, biased):
    precision, hidden = shape.precision, shape.hidden
    paths = [store_expert(Path(folder), shape, seed, biased=biased)[0] for seed in range(count)]
    lanes = Lanes(1)
    residents = Residents(10**10, provider("cpu"), lanes)
    runtime = Runtime(residents, lanes)
    names = [ExpertName("m", index // 8, index % 8) for index in range(count)]

    def load(index):
        residents.load(names[index], shape, paths[index], paths[index].name)
        for n in (1, 8):
            row, weight = np.arange(n, dtype=np.uint32), np.ones(n, np.float32)
            rows, expert = np.ones((n, hidden), np.float32), np.full(n, index % 8, np.uint16)
            runtime.execute(Request(1, (1, 1), model_key("m"), index // 8, 0, {"rows": rows}, row, expert, weight))

    for index in range(min(3, count)):  # what a process pays once is not an expert's
        load(index)
        residents.unload(names[index], precision)
    empty = rss_bytes()
    for index in range(count):
        load(index)
    full, counted = rss_bytes(), residents.used_bytes
    for cycle in range(cycles):
        residents.unload(names[cycle % count], precision)
        load(cycle % count)
    cycled = rss_bytes()
    for index in range(count):
        residents.unload(names[index], precision)
    print(json.dumps({"empty": empty, "full": full, "counted": counted, "cycled": cycled, "end": rss_bytes()}))


if __name__ == "__main__":
    place, of_precision, of_hidden, of_width, of_activation, kind, instances, turns = sys.argv[1:]
    made = ExpertShape(int(of_hidden), int(of_width), of_precision, of_activation)
    main(place, made, int(instances), int(turns), biased=kind == "biased")
