"""Long work beside an event loop that must not hold up the end of the process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["in_daemon_thread"]

T = TypeVar("T")


async def in_daemon_thread(act: Callable[[], T]) -> T:
    """As `asyncio.to_thread`, but neither the loop's nor the interpreter's end waits for `act`; raises what it raises.

    A caller that is cancelled leaves it running.
    """
    loop = asyncio.get_running_loop()
    done: concurrent.futures.Future[T] = concurrent.futures.Future()
    done.set_running_or_notify_cancel()  # from here a caller that gives up leaves it alone

    def run() -> None:
        try:
            done.set_result(act())
        except BaseException as error:  # noqa: BLE001 - the waiting side raises it
            done.set_exception(error)

    threading.Thread(target=run, name=getattr(act, "__name__", "beside"), daemon=True).start()
    return await asyncio.wrap_future(done, loop=loop)
