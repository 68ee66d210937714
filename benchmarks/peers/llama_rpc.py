"""llama.cpp's remote backend through its C interface, and its server as a program.

`llama_rpc.py BACKEND PORT THREADS` lets callers compute on this processor, one after the other, until stdin ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import llama_cpp.llama_cpp as lib  # first: the backend is linked to the libraries that this loads

__all__ = ["Remote", "Server"]

LLAMA: ctypes.CDLL = lib._lib
"""Asked for ggml's functions as well: the package may load a second ggml, which llama.cpp does not look into."""
CPU_DEVICE = 0  # ggml's first kind
HOST, START_S = "127.0.0.1", 30.0


def function(backend: ctypes.CDLL, name: str, *arguments: type, result: type | None = ctypes.c_void_p):
    found = getattr(backend, name)
    found.argtypes, found.restype = arguments, result
    return found


class Remote:
    """The backend in this process."""

    def __init__(self, backend: Path) -> None:
        self._rpc = ctypes.CDLL(str(backend))

    def memory_of(self, endpoint: str) -> int:
        """The type of buffers on a server that is there, known to llama.cpp from here on."""
        add = function(self._rpc, "ggml_backend_rpc_add_server", ctypes.c_char_p)
        register = function(LLAMA, "ggml_backend_register", ctypes.c_void_p, result=None)
        buffers = function(self._rpc, "ggml_backend_rpc_buffer_type", ctypes.c_char_p, ctypes.c_uint32)
        register(add(endpoint.encode()))
        return buffers(endpoint.encode(), 0)

    def serve(self, endpoint: str, threads: int) -> None:
        """Compute for callers; returns when it cannot."""
        by_type = function(LLAMA, "ggml_backend_dev_by_type", ctypes.c_int)
        sizes = ctypes.c_size_t, ctypes.c_size_t
        start = function(
            self._rpc, "ggml_backend_rpc_start_server", ctypes.c_char_p, ctypes.c_char_p, *sizes, ctypes.c_void_p,
            result=None,
        )  # fmt: skip
        devices = (ctypes.c_void_p * 1)(by_type(CPU_DEVICE))
        start(endpoint.encode(), None, threads, 1, devices)


class Server:
    """The server as a process of its own, which ends with this one."""

    def __init__(self, backend: Path, threads: int) -> None:
        with socket.create_server((HOST, 0)) as free:
            self.endpoint = f"{HOST}:{free.getsockname()[1]}"
        port = self.endpoint.rpartition(":")[2]
        command = [sys.executable, __file__, str(backend), port, str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sys.stderr)
        self._wait(int(port))

    @property
    def memory_mb(self) -> float:
        """What of its memory is in use."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) * 1024 / 1e6

    def _wait(self, port: int) -> None:
        end = time.monotonic() + START_S
        while self._process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection((HOST, port)):
                return
            time.sleep(0.05)  # between two attempts: it does not say when it listens
        raise RuntimeError("llama.cpp's server for remote buffers did not start")


def end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)  # the server knows no end


def main() -> None:
    backend, port, threads = sys.argv[1:]
    threading.Thread(target=end_with_stdin, daemon=True).start()
    lib.llama_backend_init()
    Remote(Path(backend)).serve(f"{HOST}:{port}", int(threads))


if __name__ == "__main__":
    main()
