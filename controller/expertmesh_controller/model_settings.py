"""Settings of each served model: `--model PATH`, `--model NAME=PATH`, or a `[[controller.models]]` table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from expertmesh_common.bundle.manifest import Numerics, Precision
from expertmesh_common.errors import InvalidInput
from expertmesh_controller.cluster.local_layers import ALL
from expertmesh_controller.cluster.models import ModelSpec, SlaTarget

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SlaSettings(BaseModel):
    """See `SlaTarget`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttft_p95_ms: Milliseconds = 0.0
    token_p95_ms: Milliseconds = 0.0
    window_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0
    min_instances: Annotated[int, Field(ge=0)] = 1
    max_instances: Annotated[int, Field(ge=0)] = 0
    cost_weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


class ModelSettings(BaseModel):
    """One model; what is None or empty comes from the bundle, or from the controller's own settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    path: Path
    precision: Precision | None = None
    numerics: Numerics | None = None
    local_layers: str | None = None
    slots: Annotated[int | None, Field(ge=1, le=1024)] = None
    budget_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    sla: SlaSettings = SlaSettings()

    def spec(
        self, precision: Precision, slots: int, numerics: Numerics = "exact", local_layers: str = ALL
    ) -> ModelSpec:
        """What gateway and control loop are told; an empty name is the bundle's own.

        Local layers come from the controller where the numerics are the controller's, too.
        """
        same = (self.numerics or numerics) == numerics
        return ModelSpec(
            self.name,
            self.path.absolute(),
            self.precision or precision,
            self.slots or slots,
            self.budget_share,
            SlaTarget(**self.sla.model_dump()),
            self.numerics or numerics,
            (local_layers if same else ALL) if self.local_layers is None else self.local_layers,
        )


def named_path(text: str) -> tuple[str, Path]:
    """(name or "", path) of `PATH` or `NAME=PATH`; what is a folder as it stands is a path."""
    name, separator, path = text.partition("=")
    if not separator or "/" in name or Path(text).is_dir():
        return "", Path(text)
    return name, Path(path)


def with_models(source: Mapping[str, Any], separator: str = "") -> dict[str, Any]:
    """The same settings with their short form `model` (one or several, or joined by `separator`) as `models`.

    Raises:
        InvalidInput: both forms are given.

    """
    if source.get("model") is None:
        return {key: value for key, value in source.items() if key != "model"}
    if source.get("models") is not None:
        raise InvalidInput("settings 'model' and 'models' are both given: keep one of them")
    short = source["model"]
    if isinstance(short, (str, Path)):
        short = str(short).split(separator) if separator else [str(short)]
    if not isinstance(short, Sequence):
        raise InvalidInput(f"setting 'model': expected a path or a list of paths (got {short!r})")
    found = [named_path(str(text)) for text in short]
    models = [{"name": name, "path": path} for name, path in found]
    return {**{key: value for key, value in source.items() if key != "model"}, **({"models": models} if models else {})}


ENVIRONMENT_SEPARATOR = os.pathsep
"""Between the models of EXPERTMESH_MODEL."""
