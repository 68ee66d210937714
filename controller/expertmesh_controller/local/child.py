"""The entry of a supervised process: `python -m expertmesh_controller.local.child PARENT_PID COMMAND...`.

It asks the kernel to be ended when its parent dies, however that happens, and then is an ordinary `expertmesh COMMAND`.
The parent could set this between fork and exec, but forking a process that runs gRPC threads is not safe.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from expertmesh.cli.main import run

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent_pid: int) -> bool:
    """Get SIGTERM (so that sockets and stores are closed properly) when the parent ends; False if it already has."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    return os.getppid() == parent_pid


if __name__ == "__main__":
    if not end_with_parent(int(sys.argv[1])):
        sys.exit("the parent process ended before this one started")
    sys.exit(run(sys.argv[2:]))
