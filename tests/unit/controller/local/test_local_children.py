"""Children are real processes: restarted after a crash, ended with their supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from expertmesh_common.clock import SystemClock
from expertmesh_common.errors import Unavailable
from expertmesh_controller.local.children import Child, ChildSpec
from expertmesh_controller.local.restarts import RestartPolicy

QUICK = RestartPolicy(base_s=0.01, max_s=0.01, give_up=3)


def silent_server(folder: Path) -> str:
    """An address where something accepts and never answers, so that `expertmesh generate` runs until it is ended."""
    return f"unix:{folder}/silent.sock"


@pytest.fixture
def waiting(tmp_path):
    """Arguments of a command that waits."""
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{tmp_path}/silent.sock")
        server.listen()
        yield ("generate", "x", "--server", silent_server(tmp_path))


def child(arguments, tmp_path, tell=None, changed=None):
    spec = ChildSpec("the-child", tuple(arguments), dict(os.environ), tmp_path / "child.log")
    return Child(spec, SystemClock(), tell or (lambda line: None), changed or (lambda: None), QUICK)


async def test_a_stopped_child_is_gone_and_is_not_started_again(waiting, tmp_path):
    told: list[str] = []
    running = child(waiting, tmp_path, told.append)
    await running.start()
    pid = running.pid
    assert pid is not None
    await running.stop()
    assert running.pid is None
    assert not psutil.pid_exists(pid)
    assert told == []


async def test_a_killed_child_is_reported_and_started_again(waiting, tmp_path):
    told: list[str] = []
    lives = asyncio.Queue[int | None]()
    running = child(waiting, tmp_path, told.append, lambda: lives.put_nowait(running.pid))
    await running.start()
    first = await lives.get()
    assert first is not None
    os.kill(first, signal.SIGKILL)
    second = await asyncio.wait_for(lives.get(), 10)
    await running.stop()
    assert second not in (None, first)
    assert "the-child was ended by SIGKILL" in told[0]


async def test_a_child_that_is_killed_again_and_again_is_never_given_up(waiting, tmp_path):
    lives = asyncio.Queue[int | None]()
    running = child(waiting, tmp_path, changed=lambda: lives.put_nowait(running.pid))
    await running.start()
    for _ in range(QUICK.give_up + 2):
        pid = await asyncio.wait_for(lives.get(), 10)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    assert await asyncio.wait_for(lives.get(), 10) is not None
    assert not running.keeper.done()
    await running.stop()


async def test_a_child_that_never_lives_is_given_up_with_its_last_words(tmp_path):
    told: list[str] = []
    running = child(["version"], tmp_path, told.append)
    await running.start()
    with pytest.raises(Unavailable, match=r"ended 3 times in a row: .*expertmesh \d"):
        await asyncio.wait_for(running.keeper, 20)
    assert len(told) == 2


SUPERVISOR = """
import asyncio, os, sys
from pathlib import Path
from expertmesh_common.clock import SystemClock
from expertmesh_controller.local.children import Child, ChildSpec
async def main():
    spec = ChildSpec("c", tuple(sys.argv[2:]), dict(os.environ), Path(sys.argv[1]))
    running = Child(spec, SystemClock(), print, lambda: None)
    await running.start()
    print(running.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def test_no_child_outlives_a_supervisor_that_was_killed(waiting, tmp_path):
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path / "log"), *waiting], stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout is not None
    orphan = psutil.Process(int(supervisor.stdout.readline()))
    _until(lambda: "expertmesh_controller.local.child" in " ".join(orphan.cmdline()))
    _until(lambda: len(orphan.net_connections("unix")) > 0)  # it is past its start, in the command itself
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    _until(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE)


def _until(holds, within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
