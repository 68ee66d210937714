"""Partial downloads: files that survive a cut connection or a killed process, held by one writer at a time."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import time
from io import BufferedRandom, BufferedReader
from pathlib import Path

from expertmesh_common.errors import CorruptData

SUFFIX = ".part"
STALE_AFTER_S = 24 * 3600.0  # long enough to resume tomorrow, short enough not to fill a small disk
STANDSTILL_S = 2.0  # whoever holds a download and gets nothing for this long may be stopped: we fetch it ourselves
LOOK_EVERY_S = 0.02


class Partial:
    """The bytes of a blob that are here so far, under an exclusive file lock.

    The lock dies with the process. Two processes that share a cache meet here: the second waits as long as the first
    gets on, and finds the blob. A first one that stands still (a stopped process keeps its lock) is left alone after
    `standstill_s`: then the bytes go to a file of our own.
    """

    def __init__(self, target: Path, standstill_s: float = STANDSTILL_S) -> None:
        self.target = target
        self.path = target.with_name(target.name + SUFFIX)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self._shared(standstill_s)
        if file is None:
            self.path = target.with_name(f"{target.name}.{secrets.token_hex(4)}{SUFFIX}")
            file = self.path.open("a+b")
            fcntl.flock(file, fcntl.LOCK_EX)
        self._file = file

    def _shared(self, standstill_s: float) -> BufferedRandom | None:
        """The file that all who fetch this blob share, locked; None while its holder stands still."""
        size_bytes, since = -1, time.monotonic()
        while True:
            file = self.path.open("a+b")
            if _locked(file):
                if _same_file(file, self.path):
                    return file
                file.close()  # whoever held the lock before us finished or removed the file that we opened
                continue
            found = os.fstat(file.fileno()).st_size
            file.close()
            if found != size_bytes:
                size_bytes, since = found, time.monotonic()
            elif time.monotonic() - since >= standstill_s:
                return None
            time.sleep(LOOK_EVERY_S)  # locks of files tell nobody when they are free

    @property
    def size_bytes(self) -> int:
        return self._file.seek(0, os.SEEK_END)

    def append(self, data: bytes) -> None:
        self._file.write(data)

    def restart(self) -> None:
        """Forget what is here."""
        self._file.truncate(0)

    def publish(self, digest: str) -> Path:
        """Make the blob visible under its name.

        Raises:
            CorruptData: the bytes are not those of the digest; they stay until `restart`.

        """
        self._file.seek(0)  # flushes too; no fsync: a blob torn by a power cut fails its next verification
        found = hashlib.file_digest(self._file, "sha256").hexdigest()
        if found != digest:
            raise CorruptData(f"the bytes have sha256 {found}")
        self.path.replace(self.target)
        return self.target

    def close(self) -> None:
        """Release the lock; an empty file is removed first, so that failures leave nothing behind."""
        self._file.flush()
        if self.size_bytes == 0 and _same_file(self._file, self.path):
            self.path.unlink()
        self._file.close()


def remove_stale_partials(folder: Path, older_than_s: float = STALE_AFTER_S, now_s: float | None = None) -> int:
    """Remove partial downloads that nobody writes and nobody touched for long; returns how many."""
    now_s = time.time() if now_s is None else now_s
    return sum(_remove_if_stale(path, now_s - older_than_s) for path in folder.glob(f"*{SUFFIX}"))


def _remove_if_stale(path: Path, before_s: float) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_mtime >= before_s or not _same_file(file, path):
                return False
            path.unlink()
            return True
    except (BlockingIOError, FileNotFoundError):
        return False  # someone is writing it, or has just published it


def _locked(file: BufferedRandom) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same_file(file: BufferedRandom | BufferedReader, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
