"""How every service process runs: one event loop, ended by SIGTERM or SIGINT, tuned for a data plane beside it."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import signal
import sys
from collections.abc import Awaitable, Callable

from threadpoolctl import threadpool_limits

# For how long the interpreter lets one thread compute before another gets its turn: what a row of the data plane may
# wait behind a busy event loop; 5 ms by default.
SWITCH_INTERVAL_S = 0.0005


__all__ = ["run_service", "tuned_runner"]


def run_service(serve: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run `serve` until it returns; it is given the event that SIGTERM and SIGINT set."""
    # numpy multiplies small matrices only (gates); the threads of its library would spin on the cores of the experts.
    with threadpool_limits(1), tuned_runner() as runner:
        runner.run(_until_signalled(serve))


def tuned_runner() -> asyncio.Runner:
    """The event loop of a service; the interpreter changes threads more often from here on."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return asyncio.Runner(loop_factory=_loop_factory())


async def _until_signalled(serve: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(stop)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop where it is installed: a frame over gRPC takes a third less time on it."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    return factory
