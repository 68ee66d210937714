"""What a person reads about a job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from expertmesh import ImportedModel, Job, NotFound
from expertmesh.cli.job_screens import following, outcome, print_job

JOB = Job("3f9a", "import_model", "queued", "/models/Mixtral", "mixtral", "ops", created_ms=1_700_000_000_000)
RUNNING = replace(JOB, state="running", stage="import", done_steps=3, total_steps=9, attempt=1)
MADE = ImportedModel("mixtral", "/data/models/mixtral", "mixtral", 32, 256, 0, ("its window is not used",))
DONE = replace(RUNNING, state="done", done_steps=9, imported=MADE)


def test_a_job_that_is_done_says_how_to_serve_what_it_made():
    assert outcome(DONE).splitlines() == [
        "mixtral (mixtral): 256 experts in 32 layers",
        "note: its window is not used",
        "serve it: expertmesh models serve /data/models/mixtral --name mixtral",
    ]
    resumed = replace(DONE, imported=replace(MADE, resumed_steps=1, notes=()))
    assert "(1 segment from an earlier attempt)" in outcome(resumed)


def test_a_job_that_is_not_done_says_why_and_what_is_left():
    assert outcome(replace(RUNNING, state="failed", error="no room")) == "job 3f9a failed: no room\n"
    assert "what it finished is kept" in outcome(replace(RUNNING, state="cancelled"))


def test_following_prints_each_change_of_state_once_where_nobody_watches(capsys):
    further = replace(RUNNING, done_steps=4)
    assert following(iter([JOB, RUNNING, further, replace(further, note="it died"), DONE])) == DONE
    read = capsys.readouterr()
    assert read.err.splitlines() == [
        "mixtral: queued", "mixtral: running", "mixtral: running (it died)", "mixtral: done",
    ]  # fmt: skip
    assert read.out == ""
    with pytest.raises(NotFound):
        following(iter([]))


def test_following_as_json_prints_every_change_as_a_line(capsys):
    following(iter([JOB, RUNNING]), as_json=True)
    assert [line[:40] for line in capsys.readouterr().out.splitlines()] == [
        '{"id": "3f9a", "kind": "import_model", "'
    ] * 2


def test_showing_a_job_leaves_out_what_says_nothing(capsys):
    print_job(JOB)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "job", "kind", "model", "from", "state", "started by", "created",
    ]  # fmt: skip
    print_job(replace(DONE, attempt=2, note="its job worker died"))
    text = capsys.readouterr().out
    assert "progress:   import 9 of 9" in text
    assert "attempt:    2" in text
    assert "serve it: " in text
