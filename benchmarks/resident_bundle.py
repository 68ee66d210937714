"""Every expert of a bundle, loaded as a worker loads it."""

from __future__ import annotations

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.parts import Numerics
from expertmesh_common.graphs.expert import ExpertShape
from expertmesh_worker.providers import provider
from expertmesh_worker.runtime.lanes import Lanes
from expertmesh_worker.runtime.residents import ExpertName, Residents

__all__ = ["resident"]


def resident(bundle: Bundle, precision: str, lanes: Lanes, numerics: Numerics = "exact") -> Residents:
    manifest = bundle.manifest
    residents = Residents(2 * manifest.expert_bytes(precision), provider("cpu"), lanes)
    for layer in manifest.layers:
        for expert in layer.experts:
            blob = expert.blobs[precision]
            shape = ExpertShape(manifest.trunk.hidden, expert.width, precision, manifest.trunk.activation, numerics)
            name = ExpertName(manifest.name, layer.index, expert.index)
            residents.load(name, shape, bundle.path(blob), blob.digest)
    return residents
