"""On the path of a process under test: at SIGUSR2 it writes how many bytes its heap has given out.

That counts every byte of Python and of its libraries, and none that is free, when PYTHONMALLOC is malloc.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from pathlib import Path


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


_mallinfo2 = ctypes.CDLL(None).mallinfo2
_mallinfo2.restype = _Mallinfo2


def _tell(*_: object) -> None:
    gc.collect()
    info = _mallinfo2()
    partial = Path(os.environ["HEAP_FOLDER"], f"{os.getpid()}.partial")
    partial.write_text(str(info.uordblks + info.hblkhd), encoding="ascii")
    partial.replace(partial.with_suffix(".told"))


signal.signal(signal.SIGUSR2, _tell)
