"""Run a program that dies with its parent: `python tied_exec.py PARENT_PID PROGRAM ARGUMENTS...`.

A file of its own, run by path, so that the few milliseconds before the program import nothing of ours. It replaces
a `preexec_fn`, which may deadlock in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    parent, program = int(arguments[0]), arguments[1]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == parent:  # else it died before we could ask to be told
        os.execv(program, arguments[1:])  # noqa: S606 - the caller named the program


if __name__ == "__main__":
    main(sys.argv[1:])
