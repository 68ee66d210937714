"""The tasks: each reads its arguments, does one thing of the toolchain, and says in words how it failed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from expertmesh_common.errors import MeshError
from expertmesh_common.jobs.importing import ImportedModel, ImportModel, JobCancelled, JobFailed
from expertmesh_forge.errors import ForgeError
from expertmesh_forge.jobs.line import TaskLine

if TYPE_CHECKING:
    from expertmesh_forge.importing.importer import Imported

__all__ = ["import_model"]


def import_model(arguments: ImportModel, line: TaskLine) -> ImportedModel:
    """Import a checkpoint; what an earlier attempt finished is not done again.

    Raises:
        JobFailed: it cannot be imported; the message is the importer's.
        JobCancelled: somebody asked for the end; the finished layers are kept beside the target.

    """
    try:
        from expertmesh_forge.importing import importer  # noqa: PLC0415 - a second to load, and only a task needs it
    except ModuleNotFoundError as error:
        raise JobFailed(f"the job worker lacks {error.name}: pip install 'expertmesh[jobs]' where it runs") from error
    request = importer.ImportRequest(
        Path(arguments.source), Path(arguments.target), arguments.precisions, arguments.name, arguments.context_tokens,
        arguments.fresh,
    )  # fmt: skip
    try:
        done = importer.import_checkpoint(request, line.report, line.cancelled)
    except importer.ImportCancelled as error:
        raise JobCancelled(str(error)) from error
    except (ForgeError, MeshError) as error:
        raise JobFailed(str(error)) from error
    except OSError as error:
        raise JobFailed(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error
    return _told(arguments, done)


def _told(arguments: ImportModel, done: Imported) -> ImportedModel:
    layers = done.manifest.layers
    return ImportedModel(
        name=done.manifest.name,
        path=arguments.target,
        family=done.manifest.family,
        layers=len(layers),
        experts=sum(len(layer.experts) for layer in layers),
        resumed_steps=done.resumed_steps,
        notes=done.notes,
    )
