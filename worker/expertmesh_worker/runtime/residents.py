"""Which experts are loaded here, within a hard budget of bytes."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from expertmesh_common.bundle.tensors import read_views
from expertmesh_common.channel.frame import model_key
from expertmesh_common.errors import InvalidInput, Precondition
from expertmesh_common.graphs.expert import ExpertShape, resident_bytes
from expertmesh_worker.providers import Provider
from expertmesh_worker.runtime.instance import ExpertInstance
from expertmesh_worker.runtime.lanes import Lanes

LayerKey = tuple[int, int]  # the model's number on the wire, the layer
Layer = Mapping[int, ExpertInstance]
_NO_EXPERTS: Layer = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ExpertName:
    """Expert `index` of layer `layer` of the model called `model`."""

    model: str
    layer: int
    index: int

    def __str__(self) -> str:
        return f"{self.model}/{self.layer}/{self.index}"


@dataclass(frozen=True, slots=True)
class Resident:
    """A loaded expert and what it counts against the budget."""

    name: ExpertName
    digest: str
    bytes: int
    instance: ExpertInstance

    @property
    def precision(self) -> str:
        return self.instance.shape.precision

    @property
    def numerics(self) -> str:
        return self.instance.shape.numerics


class Residents:
    """Loads and unloads while frames run: readers take one immutable table, writers publish the next one."""

    def __init__(self, budget_bytes: int, provider: Provider, lanes: Lanes) -> None:
        self.budget_bytes = budget_bytes
        self._provider = provider
        self._lanes = lanes
        self._layers: Mapping[LayerKey, Layer] = {}
        self.recurring: dict[Any, Any] = {}
        """What `Recurring` knows of the present table; a new table starts with none, so that nothing is kept alive."""
        self._held: Mapping[ExpertName, Resident] = {}
        self._reserved_bytes = 0
        self.loads, self.evictions = 0, 0
        """Totals since the start; a copy that is replaced counts as evicted."""
        self._change = threading.Lock()  # guards the tables and the sum
        self._release = threading.Lock()  # one grace period at a time

    def layer(self, model: int, layer: int) -> Layer:
        """The instances of one layer, by expert index; empty if none is here. Takes no lock."""
        return self._layers.get((model, layer), _NO_EXPERTS)

    @property
    def used_bytes(self) -> int:
        """Bytes of everything loaded or being loaded."""
        return self._reserved_bytes

    def __iter__(self) -> Iterator[Resident]:
        return iter(tuple(self._held.values()))

    def load(self, name: ExpertName, shape: ExpertShape, weights: Path, digest: str, declared_bytes: int = 0) -> int:
        """Make the expert resident, replacing a copy of other bytes, precision or numerics; returns what it counts.

        `declared_bytes` is what the bundle's manifest says; the larger of that and our own account counts.

        Raises:
            Precondition: it does not fit the budget; the message names the missing bytes.
            InvalidInput: its size differs from that of the layer's other experts.
            CorruptData: the file is not such an expert.

        """
        held = self._held.get(name)
        if held is not None and (held.digest, held.instance.shape) == (digest, shape):
            return held.bytes
        del held  # the copy that is replaced must have no other reference when its bytes count as free
        size = max(declared_bytes, resident_bytes(shape, read_views(weights)))
        self._reserve(name, shape, size)
        try:
            instance = ExpertInstance(shape, weights, self._provider, self._lanes.all)
            self._warm(instance)
            if instance.left_garbage:
                return_free_memory()
        except BaseException:
            self._give_back(size)
            raise
        self._free(self._publish(name, Resident(name, digest, size, instance)))
        return size

    def unload(self, name: ExpertName, precision: str) -> None:
        """Stop serving the expert, let running frames end, and free it. Nothing happens if it is not here."""
        if self.precision(name) == precision:
            self._free(self._publish(name, None))

    def precision(self, name: ExpertName) -> str | None:
        """At which precision the expert is here; None if it is not."""
        held = self._held.get(name)
        return None if held is None else held.precision

    def _reserve(self, name: ExpertName, shape: ExpertShape, size: int) -> None:
        with self._change:
            for other in self._layers.get(_layer_key(name), _NO_EXPERTS).values():
                if other.hidden != shape.hidden:
                    raise InvalidInput(f"expert {name} has hidden {shape.hidden}, its layer here has {other.hidden}")
            missing = self._reserved_bytes + size - self.budget_bytes
            if missing > 0:
                raise Precondition(
                    f"expert {name} at {shape.precision} needs {size} bytes, {missing} more than are free"
                    f" ({self._reserved_bytes} of {self.budget_bytes} are taken): unload another or raise --budget"
                )
            self._reserved_bytes += size

    def _warm(self, instance: ExpertInstance) -> None:
        """The first run of a session allocates; it must not be a caller's."""
        lane = self._lanes.take(timeout_s=60.0)
        try:
            instance.seats[lane.number].warm()
        finally:
            self._lanes.give(lane)

    def _publish(self, name: ExpertName, resident: Resident | None) -> list[Resident]:
        """Put the next tables in place, with or without `name`; what was there under it is returned."""
        key = _layer_key(name)
        with self._change:
            held, layer = dict(self._held), dict(self._layers.get(key, _NO_EXPERTS))
            before = held.pop(name, None)
            layer.pop(name.index, None)
            self.loads += resident is not None
            self.evictions += before is not None
            if resident is not None:
                held[name] = resident
                layer[name.index] = resident.instance
            layers = {**self._layers, key: layer}
            if not layer:
                del layers[key]
            self._held, self._layers, self.recurring = held, layers, {}
        return [] if before is None else [before]

    def _free(self, removed: list[Resident]) -> None:
        """Empty `removed`, which holds the last references once running frames have ended.

        Their bytes count as free only after the process has given them back.
        """
        if not removed:
            return
        size = sum(resident.bytes for resident in removed)
        with self._release:
            self._lanes.quiesce()
            removed.clear()
            return_free_memory()
        self._give_back(size)

    def _give_back(self, size: int) -> None:
        with self._change:
            self._reserved_bytes -= size


def return_free_memory() -> None:
    """Give freed heap pages back to the system.

    An expert's buffers are smaller than what malloc maps one by one, so they lie in the heap, and glibc keeps freed
    heap pages for later: 150 MB after unloading 200 experts, which another process on the node cannot use.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)


def _layer_key(name: ExpertName) -> LayerKey:
    return model_key(name.model), name.layer


_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only; other allocators return pages themselves
