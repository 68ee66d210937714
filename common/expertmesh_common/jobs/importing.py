"""The job that imports a checkpoint: its arguments, its result, and how it tells what went wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from expertmesh_common.bundle.parts import Precision

IMPORT_MODEL = "expertmesh.import_model"
"""The name of the task."""

USUAL_PRECISIONS: tuple[Precision, ...] = ("fp32", "int4")
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Schema(BaseModel):
    """Frozen, and nothing that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ImportModel(Schema):
    """Import the checkpoint in `source` as the bundle `target`; both are absolute, on the job worker's machine."""

    source: str
    target: str
    name: Annotated[str, Field(pattern=MODEL_NAME.pattern)]
    precisions: tuple[Precision, ...] = USUAL_PRECISIONS
    context_tokens: Annotated[int, Field(ge=1)] | None = None
    """None is the longest text that is served exactly."""
    fresh: bool = False


class ImportedModel(Schema):
    """The bundle at `path`. `resumed_steps` segments were finished by an earlier attempt."""

    name: str
    path: str
    family: str
    layers: int
    experts: int
    resumed_steps: int = 0
    notes: tuple[str, ...] = ()


class Progress(Schema):
    """How far a task is, and the `worker` that runs it."""

    worker: str
    stage: str = ""
    done: int = 0
    total: int = 0


class JobFailed(Exception):
    """Ends a task with a message for people; it means the same in the job worker and in the controller."""


class JobCancelled(Exception):
    """Ends a task that was asked to end."""


def name_of_folder(folder: str) -> str:
    """What a model is called when nobody says: like its folder, in lower case, with what names may contain."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(folder).name).strip("-._").lower()
    return kept[:128] or "imported"
