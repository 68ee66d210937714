"""A served model as the operator asked for it: what gateway and control loop are both told."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from expertmesh_common.bundle.manifest import NUMERICS, PRECISIONS, Numerics, Precision
from expertmesh_common.errors import InvalidInput
from expertmesh_controller.cluster.local_layers import ALL, checked_ranges

__all__ = ["NUMERICS", "PRECISIONS", "ModelSpec", "SlaTarget", "checked"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_YOUNGER = frozenset({"numerics", "local_layers"})


@dataclass(frozen=True, slots=True)
class SlaTarget:
    """What a model's users are promised; 0 is no target.

    Times in milliseconds over a window of seconds; `max_instances` (copies of each expert) 0 is no limit.
    """

    ttft_p95_ms: float = 0.0
    token_p95_ms: float = 0.0
    window_s: float = 60.0
    min_instances: int = 1
    max_instances: int = 0
    cost_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A bundle to serve under `name`, everything at `precision`.

    `budget_share` is the most that its experts may take of all workers' budgets; `slots` answers run at once. With
    numerics `fast` every gateway holds the experts of `local_layers` in its own graphs, and workers none of these.
    """

    name: str
    path: Path
    precision: Precision
    slots: int
    budget_share: float = 1.0
    sla: SlaTarget = field(default_factory=SlaTarget)
    numerics: Numerics = "exact"
    local_layers: str = ALL
    """Ranges such as `0,3,8-11`, or `none`; controllers that do not know `none` refuse it as a wrong range."""

    def to_document(self) -> dict[str, Any]:
        """As a JSON value. What younger versions added is left out at its default, so that older ones read it."""
        document = {**asdict(self), "path": str(self.path)}
        defaults = {f.name: f.default for f in fields(self) if f.name in _YOUNGER}
        return {name: value for name, value in document.items() if name not in defaults or value != defaults[name]}

    @staticmethod
    def from_document(document: dict[str, Any]) -> ModelSpec:
        """The inverse of `to_document`.

        Raises:
            KeyError, TypeError: it is not one.

        """
        return ModelSpec(**{**document, "path": Path(document["path"]), "sla": SlaTarget(**document["sla"])})


def checked(spec: ModelSpec) -> ModelSpec:
    """The same spec, `local_layers` without what does not matter.

    Raises:
        InvalidInput: a field is out of range; the message names it.

    """
    sla = spec.sla
    if not _NAME.fullmatch(spec.name):
        raise InvalidInput(f"name {spec.name[:40]!r} must be 1 to 128 letters, digits and any of '._-', no sign first")
    if spec.precision not in PRECISIONS:
        raise InvalidInput(f"precision {spec.precision!r} does not exist: allowed are {', '.join(PRECISIONS)}")
    if spec.numerics not in NUMERICS:
        raise InvalidInput(f"numerics {spec.numerics!r} does not exist: allowed are {', '.join(NUMERICS)}")
    if not 1 <= spec.slots <= 1024:
        raise InvalidInput(f"slots is {spec.slots}: allowed are 1 to 1024")
    if not 0 < spec.budget_share <= 1:
        raise InvalidInput(f"budget_share is {spec.budget_share:g}: expected more than 0 and at most 1")
    for name in ("ttft_p95_ms", "token_p95_ms", "window_s", "cost_weight"):
        value = float(getattr(sla, name))
        if not math.isfinite(value) or value < 0:
            raise InvalidInput(f"sla.{name} is {value:g}: expected 0 or more")
    if sla.max_instances and sla.max_instances < sla.min_instances:
        raise InvalidInput(f"sla.max_instances is {sla.max_instances}, less than sla.min_instances {sla.min_instances}")
    return replace(spec, local_layers=checked_ranges(spec.local_layers, spec.numerics))
