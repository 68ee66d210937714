"""Real worker processes against a scripted control loop over real gRPC."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from expertmesh_common.bundle.blobs import BlobStore
from models.made_experts import SMALL, store_expert
from models.scripted_control import ScriptedControl
from rigs.worker_processes import SECURITY, TOKEN


@pytest.fixture
async def control(tmp_path):
    control = ScriptedControl(BlobStore(tmp_path / "origin"), SECURITY)
    await control.start()
    yield control
    await control.stop()


@pytest.fixture
def experts(tmp_path):
    """Blobs of three experts, at the origin."""
    return [store_expert(tmp_path / "origin", SMALL, seed)[1] for seed in range(3)]


@pytest.fixture
async def start_worker(control, tmp_path):
    children = []

    async def start(*options, token=TOKEN, budget="1MB", cache="cache", name="w1"):
        command = [
            sys.executable, "-m", "expertmesh.cli.main", "worker", "--join", control.address, "--id", name,
            "--cache", str(tmp_path / cache), "--listen", "127.0.0.1:0", "--budget", budget, *options,
        ]  # fmt: skip
        environment = {**os.environ, "EXPERTMESH_TOKEN": token}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        child = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE, env=environment)
        children.append(child)
        return child

    yield start
    for child in children:
        if child.returncode is None:
            child.kill()
        await child.communicate()
