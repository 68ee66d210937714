"""The list of jobs as the store keeps it, and what Celery's results mean."""

from __future__ import annotations

import pytest
from billiard.exceptions import WorkerLostError

from expertmesh_common.errors import CorruptData, InvalidInput, NotHere
from expertmesh_common.jobs.importing import ImportModel, JobCancelled, JobFailed, Progress, name_of_folder
from expertmesh_common.jobs.wire import CANCELLED_KEY, celery_settings, celery_url, decode_ids, encode_ids
from expertmesh_controller.control.jobs.record import ENDED_KEPT, Job, JobsRecord, JobState
from expertmesh_controller.control.jobs.tasks import sight_of


def job(job_id: str, state: JobState = JobState.QUEUED, ended_ms: int = 0) -> Job:
    arguments = ImportModel(source="/c", target=f"/b/{job_id}", name=job_id)
    return Job(
        id=job_id, kind="import_model", arguments=arguments, started_by="ops", created_ms=1, state=state,
        ended_ms=ended_ms,
    )  # fmt: skip


def test_a_record_comes_back_from_the_store_as_it_was():
    record = JobsRecord(jobs=(job("a"), job("b", JobState.RUNNING)))
    assert JobsRecord.decode(record.encode()) == record
    assert JobsRecord.decode(None) == JobsRecord()
    with pytest.raises(CorruptData, match="not a list of jobs"):
        JobsRecord.decode(b'{"jobs": [{"id": 1}]}')


def test_jobs_go_one_at_a_time_the_oldest_first():
    record = JobsRecord(jobs=(job("a", JobState.DONE), job("b"), job("c")))
    assert record.next_to_send() == record.of("b")
    for state in (JobState.SENT, JobState.RUNNING, JobState.CANCELLING):
        assert record.with_job(job("b", state)).next_to_send() is None
    assert record.with_job(job("b", JobState.FAILED)).next_to_send() == record.of("c")
    with pytest.raises(NotHere, match="jobs list"):
        record.of("d")


def test_the_jobs_that_ended_longest_ago_are_forgotten_and_those_that_wait_never():
    record = JobsRecord(jobs=(job("waits"), job("last", JobState.DONE, 10**6)))
    for number in range(ENDED_KEPT):
        record = record.with_job(job(f"n{number}", JobState.DONE, ended_ms=number + 1))
    ids = {kept.id for kept in record.jobs}
    assert len(ids) == ENDED_KEPT + 1
    assert {"waits", "last", "n1"} <= ids
    assert "n0" not in ids


@pytest.mark.parametrize(
    ("meta", "state", "words"),
    [
        ({"status": "PENDING", "result": None}, "waiting", ""),
        ({"status": "PROGRESS", "result": {"worker": "w", "done": 1, "total": 2}}, "running", ""),
        ({"status": "FAILURE", "result": JobFailed("no such folder")}, "failed", "no such folder"),
        ({"status": "FAILURE", "result": JobCancelled("ended")}, "cancelled", ""),
        ({"status": "REVOKED", "result": RuntimeError("terminated")}, "cancelled", ""),
        ({"status": "FAILURE", "result": WorkerLostError("signal 9")}, "lost", "signal 9"),
        ({"status": "FAILURE", "result": KeyError("x")}, "failed", "KeyError: 'x' (unforeseen;"),
        ({"status": "SUCCESS", "result": {"strange": 1}}, "failed", "its job worker is of another version"),
    ],
)
def test_results_of_celery_say_what_became_of_a_task(meta, state, words):
    sight = sight_of(meta)
    assert sight.state == state
    assert words in sight.words
    assert (sight.progress == Progress(worker="w", done=1, total=2)) == (state == "running")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://u:p@h:1/2", "redis://u:p@h:1/2"),
        ("rediss://h:1/2", "rediss://h:1/2?ssl_cert_reqs=required"),
        ("rediss://h/0?ssl_cert_reqs=none", "rediss://h/0?ssl_cert_reqs=none"),
        ("rediss://h/0?ssl_ca_certs=/c", "rediss://h/0?ssl_ca_certs=/c&ssl_cert_reqs=required"),
        ("unix:///tmp/a/store.sock", "redis+socket:///tmp/a/store.sock?virtual_host=0"),
        ("unix://u:p@/tmp/s?db=3", "redis+socket://u:p@/tmp/s?virtual_host=3"),
    ],
)
def test_the_url_of_the_store_is_one_that_celery_reads(url, expected):
    assert celery_url(url) == expected
    assert celery_settings(url)["broker_url"] == expected


def test_a_store_that_does_not_speak_redis_carries_no_jobs_and_its_password_is_not_shown():
    with pytest.raises(InvalidInput, match="jobs need a store that speaks Redis") as caught:
        celery_url("http://user:secret@host/0")
    assert "secret" not in str(caught.value)


def test_the_ids_of_tasks_that_shall_end_come_back_as_they_were():
    assert decode_ids(encode_ids(("a", "b"))) == ("a", "b")
    assert decode_ids(None) == (), CANCELLED_KEY


@pytest.mark.parametrize(
    ("folder", "name"),
    [("/models/Mixtral 8x7B", "mixtral-8x7b"), ("/a/.hidden.", "hidden"), ("/", "imported"), ("/x/ä", "imported")],
)
def test_a_model_without_a_name_is_called_like_its_folder(folder, name):
    assert name_of_folder(folder) == name
    assert ImportModel(source=folder, target="/t", name=name)
