"""A worker's runtime in this process that holds a few made experts of one layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from expertmesh_worker.providers import provider
from expertmesh_worker.runtime.executing import Runtime
from expertmesh_worker.runtime.lanes import Lanes
from expertmesh_worker.runtime.residents import ExpertName, Residents
from models.made_experts import SMALL, store_expert

MODEL, LAYER, EXPERTS = "m", 3, 5


def stored_experts(folder: Path) -> list[Path]:
    """The blobs of experts 0 to 4, made from their index as seed."""
    return [store_expert(folder, SMALL, index)[0] for index in range(EXPERTS)]


def loaded_runtime(blobs: Sequence[Path], lanes: Lanes) -> Runtime:
    residents = Residents(10**9, provider("cpu"), lanes)
    for index, path in enumerate(blobs):
        residents.load(ExpertName(MODEL, LAYER, index), SMALL, path, path.name)
    return Runtime(residents, lanes)
