"""Background jobs of `expertmesh up`, from the command line and through the death of its controller."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from e2e.running import RunningUp, gone, running_up, until
from expertmesh import Client
from models import hf_checkpoints as hf

PRECISIONS = "fp32,fp16,bf16,int8,int4"
STEPS_A_LAYER = 33


@pytest.fixture(scope="session")
def long_checkpoint(tmp_path_factory) -> Path:
    """24 layers of 32 experts: its import lasts long enough to be met in its middle."""
    root = tmp_path_factory.getbasetemp() / "checkpoints"
    return hf.cached_checkpoint(root, "mixtral", num_hidden_layers=24, num_local_experts=32)


def expertmesh(up: RunningUp, *arguments: str, code: int = 0, folder: Path | None = None) -> str:
    """What a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "expertmesh.cli.main", *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "EXPERTMESH_SERVER": up.address}, cwd=folder, timeout=90,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout


def task_of(up: RunningUp) -> int:
    """The process id of the task under way."""
    children = psutil.Process(up.pids["controller"]).children()
    worker = next(child for child in children if "job-worker" in child.cmdline())
    return worker.children()[0].pid


def test_the_command_line_imports_on_the_mesh_follows_the_job_and_serves_what_it_made(
    tiny_folder, folder, long_checkpoint
):
    arguments = ["--model", str(tiny_folder), "--listen", "127.0.0.1:0", "--workers", "2", "--budget-share", "0.6"]
    with running_up(folder, arguments) as up:
        # The folder is named as the shell of its owner would, relative.
        started = expertmesh(
            up, "model", "import", long_checkpoint.name, "--on-mesh", "--name", "big", "--no-watch",
            folder=long_checkpoint.parent,
        )  # fmt: skip
        job = started.split()[1]
        watched = expertmesh(up, "jobs", "watch", job)
        bundle = folder / "home" / "models" / "big"
        assert f"serve it: expertmesh models serve {bundle} --name big" in watched
        assert (bundle / "manifest.json").is_file()
        assert f"{job}  import_model  big    done" in expertmesh(up, "jobs", "list")
        assert "state:      done" in expertmesh(up, "jobs", "show", job)
        assert json.loads(expertmesh(up, "jobs", "show", job, "--json"))["imported"]["experts"] == 24 * 32
        lines = expertmesh(up, "jobs", "watch", job, "--json").splitlines()
        assert [json.loads(line)["state"] for line in lines] == ["done"]
        assert "job" in expertmesh(up, "jobs", "cancel", job)
        failed = expertmesh(up, "model", "import", str(folder), "--on-mesh", "--name", "none", code=1)
        assert "failed: " in failed
        expertmesh(up, "models", "serve", str(bundle), "--name", "big", "--no-wait")
        assert "big" in expertmesh(up, "models", "list")


def test_who_watches_a_job_sees_its_end_although_the_controller_is_killed_meanwhile(
    tiny_folder, folder, long_checkpoint
):
    with running_up(folder, ["--model", str(tiny_folder), "--listen", "127.0.0.1:0"]) as up, Client(up.address) as mesh:
        job = mesh.jobs.start_import(long_checkpoint, precisions=PRECISIONS.split(","))
        until(lambda: mesh.jobs.get(job.id).done_steps >= 2 * STEPS_A_LAYER, 60)
        task = task_of(up)
        os.kill(task, signal.SIGSTOP)
        assert not mesh.jobs.get(job.id).ended
        seen: list[object] = []
        watching = threading.Thread(target=lambda: seen.extend(mesh.jobs.watch(job.id, deadline_s=90)))
        watching.start()
        until(lambda: bool(seen), 20)
        os.kill(up.pids["controller"], signal.SIGKILL)
        until(lambda: gone(task), 20)
        watching.join()
        ended = seen[-1]
        assert (ended.state, ended.attempt) == ("done", 2)
        assert ended.imported.resumed_steps >= 2


def test_without_jobs_up_starts_no_job_worker(tiny_folder, folder):
    with running_up(folder, ["--model", str(tiny_folder), "--listen", "127.0.0.1:0", "--jobs", "off"]) as up:
        children = psutil.Process(up.process.pid).children(recursive=True)
        assert not [child for child in children if "job-worker" in child.cmdline()]
        done = subprocess.run(
            [sys.executable, "-m", "expertmesh.cli.main", "model", "import", "/x", "--on-mesh", "--server", up.address],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 4
        assert "--jobs off" in done.stderr
