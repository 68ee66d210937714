"""The Celery application of a job worker: which tasks there are, and how they run."""

from __future__ import annotations

from typing import Any

from celery import Celery

from expertmesh_common.jobs.importing import IMPORT_MODEL, ImportModel, JobCancelled, JobFailed, Progress
from expertmesh_common.jobs.wire import PROGRESS, celery_settings
from expertmesh_forge.jobs.line import task_line
from expertmesh_forge.jobs.tasks import import_model

__all__ = ["make_app"]


def make_app(url: str) -> Celery:
    """The application over the store at `url`.

    Raises:
        InvalidInput: `url` is not one that jobs can use.

    """
    app = Celery("expertmesh", set_as_current=False)
    app.conf.update(
        celery_settings(url),
        # A task may take hours: its message is done with when it begins, and the controller sees to another attempt.
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_max_tasks_per_child=1,  # whatever memory a task took is given back
        worker_redirect_stdouts=False,
    )

    def run(task: Any, arguments: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - Celery has no types
        def tell(progress: Progress) -> None:
            task.update_state(state=PROGRESS, meta=progress.model_dump())

        with task_line(url, task.request.id, task.request.hostname, tell) as line:
            if line.cancelled():
                raise JobCancelled("cancelled before it began")
            line.begin()
            return import_model(ImportModel.model_validate(arguments), line).model_dump(mode="json")

    app.task(name=IMPORT_MODEL, bind=True, throws=(JobFailed, JobCancelled))(run)
    return app
