"""From a request to the arguments of a job: what is allowed, and where its result will lie."""

from __future__ import annotations

from pathlib import Path

from expertmesh_api.v1 import jobs_pb2
from expertmesh_common.bundle.manifest import PRECISIONS
from expertmesh_common.errors import InvalidInput, Precondition
from expertmesh_common.jobs.importing import MODEL_NAME, USUAL_PRECISIONS, ImportModel, name_of_folder
from expertmesh_controller.control.jobs.record import JobsRecord


def import_arguments(request: jobs_pb2.ImportModel, models_folder: Path) -> ImportModel:
    """What the job worker is told: the bundle will be a folder of `models_folder`.

    Raises:
        InvalidInput: a field is missing or not allowed; the message names it.

    """
    if not request.folder:
        raise InvalidInput("folder is missing: name the folder of a checkpoint on the controller's machine")
    if "\0" in request.folder or not Path(request.folder).is_absolute():
        raise InvalidInput(f"folder {request.folder[:200]!r} must be absolute: the controller has its own folder")
    name = request.name or name_of_folder(request.folder)
    if not MODEL_NAME.fullmatch(name):
        raise InvalidInput(
            f"name {name[:200]!r} is not allowed: 1 to 128 letters, digits, dots, dashes and underscores, "
            "a letter or digit first"
        )
    wrong = [precision for precision in request.precisions if precision not in PRECISIONS]
    if wrong:
        raise InvalidInput(f"precisions: {wrong[0][:64]!r} is none; allowed are {', '.join(PRECISIONS)}")
    asked = tuple(precision for precision in PRECISIONS if precision in request.precisions)
    return ImportModel(
        source=request.folder,
        target=str(models_folder / name),
        name=name,
        precisions=asked or USUAL_PRECISIONS,
        context_tokens=request.context_tokens or None,
        fresh=request.fresh,
    )


def require_free(arguments: ImportModel, record: JobsRecord) -> None:
    """Check that nothing is, and no other job puts anything, where the bundle will be.

    Raises:
        Precondition: the place is taken.

    """
    if Path(arguments.target).exists():
        raise Precondition(
            f"there is a bundle in {arguments.target} already: give this one another name (--name), "
            "or remove that one if nothing serves it"
        )
    for job in record.jobs:
        if not job.ended and job.arguments.target == arguments.target:
            raise Precondition(
                f"job {job.id} makes {arguments.name!r} already: watch it, or give this one another name"
            )
