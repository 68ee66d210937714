"""One act after a burst of changes."""

from __future__ import annotations

import asyncio
import threading

from expertmesh_worker.agent.settling import Settling


class Act:
    """Counts its calls; each one waits until it may end."""

    def __init__(self) -> None:
        self.calls = threading.Semaphore(0)
        self.count = 0
        self.may_end = threading.Event()

    def __call__(self) -> None:
        self.count += 1
        self.calls.release()
        assert self.may_end.wait(10)

    async def called(self) -> bool:
        return await asyncio.to_thread(self.calls.acquire, timeout=10)


async def test_a_burst_of_changes_is_acted_on_once() -> None:
    act = Act()
    act.may_end.set()
    settling = Settling(act, quiet_s=0.1)
    for _ in range(20):
        settling.changed()
    assert act.count == 0
    assert await act.called()
    await asyncio.sleep(0.3)  # longer than the others would have waited
    assert act.count == 1


async def test_a_change_while_it_acts_is_acted_on_afterwards() -> None:
    act = Act()
    settling = Settling(act, quiet_s=0.01)
    settling.changed()
    assert await act.called()
    settling.changed()
    await asyncio.sleep(0.1)
    assert act.count == 1
    act.may_end.set()
    assert await act.called()


async def test_after_the_close_nothing_begins() -> None:
    act = Act()
    settling = Settling(act, quiet_s=0.01)
    settling.changed()
    settling.close()
    await asyncio.sleep(0.1)
    assert act.count == 0
