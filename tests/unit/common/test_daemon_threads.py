"""Work that nobody's end waits for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from expertmesh_common.daemon_threads import in_daemon_thread

NEVER_DONE = """
import asyncio, threading
from expertmesh_common.daemon_threads import in_daemon_thread
began = threading.Event()
def endless():
    began.set()
    threading.Event().wait()
async def main():
    task = asyncio.create_task(in_daemon_thread(endless))
    await asyncio.to_thread(began.wait)
    task.cancel()
asyncio.run(main())
print("ended")
"""


async def test_what_it_finds_and_what_it_raises_reaches_the_caller() -> None:
    assert await in_daemon_thread(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(lambda: 1 // 0)


async def test_a_caller_that_gives_up_leaves_it_running() -> None:
    go, done = threading.Event(), threading.Event()

    def work() -> None:
        go.wait()
        done.set()

    waiting = asyncio.create_task(in_daemon_thread(work))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    go.set()
    assert await asyncio.to_thread(done.wait, 10)


def test_a_process_ends_while_it_still_works() -> None:
    done = subprocess.run([sys.executable, "-c", NEVER_DONE], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("ended\n", "", 0)
