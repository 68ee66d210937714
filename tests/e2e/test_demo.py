"""`expertmesh demo`, what `make run` calls: the real model, split over workers that each hold a part, proven exact."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from e2e.running import disturbed, gone, running_up, until
from expertmesh import Client

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "build" / "demo-bundle"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first run converts the model


def command(report: Path, *more: str) -> list[str]:
    base = [sys.executable, "-m", "expertmesh.cli.main", "demo", "--bundle", str(BUNDLE), "--report", str(report)]
    return [*base, *more]


def test_the_demo_answers_exactly_and_leaves_only_its_report(tmp_path):
    temporary = tmp_path / "t"
    temporary.mkdir()
    done = subprocess.run(
        command(tmp_path / "report.json"), env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert "Paris" in report["text"]
    assert report["text"] in done.stdout
    assert report["exact"]
    assert [t for i, t in enumerate(report["tokens"]) if i not in report["ties"]] == [
        t for i, t in enumerate(report["reference_tokens"]) if i not in report["ties"]
    ]
    assert len(report["workers"]) == 3
    for worker in report["workers"]:
        assert 0 < worker["expert_bytes"] <= worker["budget_bytes"] < report["model_expert_bytes"]
        assert worker["rows"] > 0
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_and_no_file(tmp_path, number):
    temporary = tmp_path / "t"
    temporary.mkdir()
    demo = subprocess.Popen(
        command(tmp_path / "report.json", "--max-tokens", "400"), env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    parent = psutil.Process(demo.pid)
    until(lambda: len(parent.children(recursive=True)) >= 5, 600)  # the supervisor, the controller, three workers
    children = parent.children(recursive=True)
    demo.send_signal(number)
    assert demo.wait(60) == 130
    assert all(gone(child.pid) for child in children)
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize(("budget_share", "most_s"), [("1.0", 3.0), ("0.6", 30.0)], ids=["replicas", "re-load"])
def test_a_worker_killed_in_mid_answer_of_the_real_model_changes_no_token(tmp_path, budget_share, most_s):
    arguments = ["--model", str(BUNDLE), "--listen", "127.0.0.1:0", "--budget-share", budget_share]
    with running_up(tmp_path, arguments) as up, Client(up.address, token=up.token) as client:
        question = [{"role": "user", "content": "Tell me about the history of Rome in detail."}]
        ask = functools.partial(client.chat, question, max_tokens=48, ignore_eos=True, deadline_s=120)
        undisturbed = [token.id for token in ask()]
        ids, pause_s = disturbed(ask(), 12, lambda: os.kill(up.pids["worker-2"], signal.SIGKILL))
        assert ids == undisturbed
        assert pause_s < most_s
        until(lambda: "worker-2 was ended by SIGKILL" in up.said, 20)
