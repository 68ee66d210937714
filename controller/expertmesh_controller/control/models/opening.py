"""Looking at a bundle before it is served: what is wrong with it is said to whoever asked for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from expertmesh_common.bundle.blobs import Bundle, file_digest
from expertmesh_common.bundle.manifest import MANIFEST_NAME, Blob
from expertmesh_common.errors import CorruptData, InvalidInput, NotHere, Precondition
from expertmesh_common.graphs.fusing import require_fusable
from expertmesh_controller.cluster.local_layers import held_layers, spelled
from expertmesh_controller.cluster.models import ModelSpec, checked
from expertmesh_controller.control.catalogue import ModelLimits, ServedModel
from expertmesh_controller.control.view import View


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A bundle that can be served as `spec` says; `digest` is the sha256 of its manifest."""

    spec: ModelSpec
    bundle: Bundle
    digest: str

    @property
    def served(self) -> ServedModel:
        limits = ModelLimits(self.spec.budget_share, self.spec.sla.max_instances)
        spec = self.spec
        return ServedModel(spec.name, self.bundle, spec.precision, limits, spec.numerics, spec.local_layers)

    @property
    def experts(self) -> int:
        return sum(len(layer.experts) for layer in self.bundle.manifest.layers)

    @property
    def expert_bytes(self) -> int:
        """Resident bytes of one copy of every expert on workers."""
        layers = self.served.on_workers
        return sum(e.blobs[self.spec.precision].resident_bytes for layer in layers for e in layer.experts)


def open_model(spec: ModelSpec) -> OpenedModel:
    """The model, its name taken from the bundle if `spec` has none. Blocks on the disk.

    Experts are looked for and measured here; every byte is verified where it is loaded.

    Raises:
        InvalidInput: a field of the spec is wrong, or the bundle has no such precision or layers.
        NotHere: there is no bundle, or a blob of an expert is missing.
        CorruptData: a blob of an expert has another size.

    """
    bundle = Bundle(spec.path)
    manifest = bundle.manifest
    named = checked(replace(spec, name=spec.name or manifest.name, path=spec.path.absolute()))
    if named.precision not in manifest.precisions:
        allowed = ", ".join(manifest.precisions)
        raise InvalidInput(f"model {named.name} has no precision {named.precision}; allowed are {allowed}")
    if named.numerics == "fast":
        held = held_layers(manifest, named.numerics, named.local_layers)
        require_fusable(manifest, named.precision, held)
        named = replace(named, local_layers=spelled(manifest, held))
    for what, blob in _expert_blobs(bundle, named):
        _check_size(bundle, what, blob)
    return OpenedModel(named, bundle, file_digest(spec.path / MANIFEST_NAME))


def check_share(opened: OpenedModel, view: View) -> None:
    """Refuse what can never be whole with the workers of now; without workers nothing is known yet.

    Raises:
        Precondition: one copy of every expert is more than the model's share of the workers' budgets.

    """
    budgets = sum(m.hello.capabilities.budget_bytes for m in view.cluster.members.values())
    share_bytes = int(budgets * opened.spec.budget_share)
    if budgets and opened.spec.budget_share < 1 and opened.expert_bytes > share_bytes:
        lack = opened.expert_bytes - share_bytes
        raise Precondition(
            f"budget_share {opened.spec.budget_share:g} of the workers' {budgets} bytes is {share_bytes} bytes, and "
            f"one copy of every expert of {opened.spec.name} takes {opened.expert_bytes}: "
            f"{lack} bytes are missing ({lack / 1e6:.1f} MB): raise budget_share or --budget, or add a worker"
        )


def _expert_blobs(bundle: Bundle, spec: ModelSpec) -> Iterator[tuple[str, Blob]]:
    for layer in bundle.manifest.layers:
        for expert in layer.experts:
            yield f"expert {expert.index} of layer {layer.index}", expert.blobs[spec.precision]


def _check_size(bundle: Bundle, what: str, blob: Blob) -> None:
    path = bundle.blobs.path(blob.digest)
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise NotHere(f"bundle {bundle.folder} is incomplete: blob {blob.digest} of {what} is missing") from None
    if found != blob.size_bytes:
        raise CorruptData(f"blob {path} of {what} has {found} bytes, the manifest says {blob.size_bytes}")
