"""What becomes of a job, from what is seen of its task."""

from __future__ import annotations

import pytest

from expertmesh_common.jobs.importing import ImportedModel, ImportModel, Progress
from expertmesh_controller.control.jobs.advancing import (
    BEGIN_S,
    SILENT_S,
    Company,
    Sight,
    advanced,
    asked_to_end,
    interrupted,
    not_sent,
    sent,
)
from expertmesh_controller.control.jobs.record import Job, JobState

NOW_MS = 5000
VOUCHED = Company(0.0, anybody=True)
SILENT = Company(SILENT_S, anybody=True)
HALF = Progress(worker="w", stage="import", done=3, total=6)
MADE = ImportedModel(name="m", path="/b/m", family="mixtral", layers=1, experts=2)


@pytest.fixture
def queued() -> Job:
    arguments = ImportModel(source="/c", target="/b/m", name="m")
    return Job(id="j", kind="import_model", arguments=arguments, started_by="ops", created_ms=1000)


@pytest.fixture
def running(queued) -> Job:
    return advanced(sent(queued, "t", 2000), Sight("running", HALF), VOUCHED, 3000)


@pytest.fixture
def cancelling(running) -> Job:
    return asked_to_end(running, 4000)


def test_a_job_runs_from_when_a_worker_says_so(queued):
    on_its_way = sent(queued, "t", 2000)
    assert (on_its_way.state, on_its_way.attempt) == (JobState.SENT, 1)
    assert advanced(on_its_way, Sight("waiting"), Company(BEGIN_S, anybody=False), 3000) == on_its_way
    running = advanced(on_its_way, Sight("running", HALF), VOUCHED, 3000)
    assert (running.state, running.started_ms, running.progress) == (JobState.RUNNING, 3000, HALF)
    assert advanced(running, Sight("running", HALF), VOUCHED, 4000) == running


def test_a_job_that_is_done_has_its_result_and_all_its_steps(running):
    done = advanced(running, Sight("done", result=MADE), SILENT, NOW_MS)
    assert (done.state, done.result, done.ended_ms) == (JobState.DONE, MADE, NOW_MS)
    assert done.progress is not None
    assert done.progress.done == done.progress.total == 6


def test_a_job_that_failed_says_why_and_is_not_tried_again(running):
    failed = advanced(running, Sight("failed", words="no such folder"), VOUCHED, NOW_MS)
    assert (failed.state, failed.error, failed.attempt) == (JobState.FAILED, "no such folder", 1)


@pytest.mark.parametrize(
    ("sight", "company", "words"),
    [
        (Sight("lost", words="signal 9 (SIGKILL)"), VOUCHED, "signal 9 (SIGKILL)"),
        (Sight("running", HALF), SILENT, "it ended without a word"),
    ],
)
def test_a_job_whose_worker_died_is_tried_once_more_then_it_has_failed(running, sight, company, words):
    again = advanced(running, sight, company, NOW_MS)
    assert (again.state, again.attempt, again.task_id) == (JobState.QUEUED, 1, "")
    assert words in again.note
    second = advanced(sent(again, "u", 5100), Sight("running", HALF), VOUCHED, 5200)
    failed = advanced(second, sight, company, NOW_MS)
    assert failed.state is JobState.FAILED
    assert failed.error == f"its job worker died 2 times: {words}"


def test_a_worker_that_is_silent_for_less_is_waited_for(running):
    almost = Company(SILENT_S - 0.1, anybody=False)
    assert advanced(running, Sight("running", HALF), almost, NOW_MS) == running


def test_a_task_that_no_living_worker_begins_is_sent_again_and_that_counts_for_nothing(queued):
    on_its_way = sent(queued, "t", 2000)
    assert advanced(on_its_way, Sight("waiting"), Company(BEGIN_S - 1, anybody=True), NOW_MS) == on_its_way
    again = advanced(on_its_way, Sight("waiting"), Company(BEGIN_S, anybody=True), NOW_MS)
    assert (again.state, again.attempt) == (JobState.QUEUED, 0)
    assert not_sent(on_its_way, "why").attempt == 0


def test_what_waits_is_cancelled_at_once_and_what_runs_when_it_has_ended(queued, running):
    assert asked_to_end(queued, NOW_MS).state is JobState.CANCELLED
    ending = asked_to_end(running, NOW_MS)
    assert (ending.state, ending.cancelled_ms) == (JobState.CANCELLING, NOW_MS)
    assert asked_to_end(ending, NOW_MS + 1) == ending
    assert advanced(ending, Sight("running", HALF), VOUCHED, NOW_MS).state is JobState.CANCELLING
    ended = advanced(ending, Sight("cancelled"), VOUCHED, NOW_MS)
    assert ended.state is JobState.CANCELLED
    assert asked_to_end(ended, NOW_MS + 1) == ended


@pytest.mark.parametrize(
    ("sight", "company"),
    [(Sight("lost"), VOUCHED), (Sight("running", HALF), SILENT), (Sight("waiting"), VOUCHED)],
)
def test_a_cancelled_job_is_not_tried_again_whatever_ended_it(cancelling, sight, company):
    assert advanced(cancelling, sight, company, NOW_MS).state is JobState.CANCELLED


def test_a_job_that_was_done_before_it_heard_of_the_cancelling_is_done(cancelling):
    assert advanced(cancelling, Sight("done", result=MADE), VOUCHED, NOW_MS).state is JobState.DONE


def test_an_ordered_end_of_the_controller_counts_for_nothing(running, cancelling):
    again = interrupted(running, NOW_MS)
    assert (again.state, again.attempt) == (JobState.QUEUED, 0)
    assert "restart of the controller" in again.note
    assert interrupted(cancelling, NOW_MS).state is JobState.CANCELLED
