"""How many bytes the heap of another process has given out, exactly; its resident memory swings by far more."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from pathlib import Path

FOLDER = Path(__file__).with_name("heap")
CAN_TELL = hasattr(ctypes.CDLL(None), "mallinfo2")


def telling(folder: Path) -> dict[str, str]:
    """Environment of processes whose heap can be asked for; they answer in `folder`."""
    path = os.pathsep.join(part for part in (str(FOLDER), os.environ.get("PYTHONPATH")) if part)
    return {"PYTHONPATH": path, "PYTHONMALLOC": "malloc", "HEAP_FOLDER": str(folder)}


async def heap_bytes(pid: int, folder: Path) -> int:
    """What process `pid` holds now, garbage collected."""
    told = folder / f"{pid}.told"
    told.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR2)
    async with asyncio.timeout(20):
        while not told.exists():  # noqa: ASYNC110 - another process: nothing signals it here
            await asyncio.sleep(0.01)
    return int(told.read_text(encoding="ascii"))
