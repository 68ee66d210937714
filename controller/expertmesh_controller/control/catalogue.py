"""What the workers have to hold: the routed experts of every served model that no gateway holds, at its precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from expertmesh_api.v1 import common_pb2, membership_pb2
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import Layer, Numerics, Precision
from expertmesh_common.errors import InvalidInput
from expertmesh_controller.cluster.local_layers import ALL, held_layers


@dataclass(frozen=True, slots=True, order=True)
class ExpertKey:
    """One expert of one model at one precision."""

    model: str
    layer: int
    index: int
    precision: str

    def to_ref(self) -> common_pb2.ExpertRef:
        return common_pb2.ExpertRef(model=self.model, layer=self.layer, index=self.index)

    @staticmethod
    def from_ref(ref: common_pb2.ExpertRef, precision: str) -> ExpertKey:
        return ExpertKey(ref.model, ref.layer, ref.index, precision)


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """The most that one model may have: of all workers' budgets, and copies of each expert (0: no limit)."""

    budget_share: float = 1.0
    max_copies: int = 0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A bundle that is served under `name` with all experts at `precision`, inside `limits` where workers hold them."""

    name: str
    bundle: Bundle
    precision: Precision
    limits: ModelLimits = field(default_factory=ModelLimits)
    numerics: Numerics = "exact"
    local_layers: str = ALL

    @property
    def on_workers(self) -> tuple[Layer, ...]:
        """The layers whose experts no gateway holds itself."""
        held = held_layers(self.bundle.manifest, self.numerics, self.local_layers)
        return tuple(layer for layer in self.bundle.manifest.layers if layer.index not in held)


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """What an instance of `key` needs; `frequency` is the share of tokens that are routed to it."""

    key: ExpertKey
    digest: str
    blob_bytes: int
    resident_bytes: int
    frequency: float
    hidden: int
    width: int
    activation: str
    numerics: Numerics = "exact"

    def to_spec(self) -> membership_pb2.ExpertSpec:
        return membership_pb2.ExpertSpec(
            expert=self.key.to_ref(),
            precision=self.key.precision,
            digest=self.digest,
            blob_bytes=self.blob_bytes,
            resident_bytes=self.resident_bytes,
            hidden=self.hidden,
            width=self.width,
            activation=self.activation,
            numerics="" if self.numerics == "exact" else self.numerics,
        )


Catalogue = Mapping[ExpertKey, CatalogueEntry]


def catalogue_of(models: Iterable[ServedModel]) -> dict[ExpertKey, CatalogueEntry]:
    """Every expert of `models` that workers hold, in order.

    Raises:
        InvalidInput: two models share a name, or a bundle lacks the precision.

    """
    found: dict[ExpertKey, CatalogueEntry] = {}
    for model in models:
        entries = _entries(model)
        if entries.keys() & found.keys():
            raise InvalidInput(f"two served models are named {model.name!r}; give each its own name")
        found |= entries
    return dict(sorted(found.items()))


def _entries(model: ServedModel) -> dict[ExpertKey, CatalogueEntry]:
    manifest = model.bundle.manifest
    if model.precision not in manifest.precisions:
        raise InvalidInput(
            f"bundle {manifest.name!r} has no {model.precision} experts; it has {', '.join(manifest.precisions)}"
        )
    entries: dict[ExpertKey, CatalogueEntry] = {}
    for layer in model.on_workers:
        for expert in layer.experts:
            blob = expert.blobs[model.precision]
            key = ExpertKey(model.name, layer.index, expert.index, model.precision)
            entries[key] = CatalogueEntry(
                key=key,
                digest=blob.digest,
                blob_bytes=blob.size_bytes,
                resident_bytes=blob.resident_bytes,
                frequency=expert.frequency,
                hidden=manifest.trunk.hidden,
                width=expert.width,
                activation=manifest.trunk.activation,
                numerics=model.numerics,
            )
    return entries
