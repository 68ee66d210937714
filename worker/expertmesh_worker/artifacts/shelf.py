"""The size limit of a blob cache: what was used longest ago goes first, and nothing that somebody is loading.

A loaded expert needs its file no more, so every blob may go; one that goes is fetched again when it is needed. The
time of last use is the file's modification time, because file systems are often mounted without access times.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from expertmesh_common.errors import Exhausted

log = logging.getLogger(__name__)

FREE_SHARE = 0.8  # of the disk that is free when a worker starts; the rest is for whoever else lives there


@dataclass(frozen=True, slots=True)
class Shelved:
    """A file of the cache, last used at `used_at` (seconds, wall clock)."""

    path: Path
    size_bytes: int
    used_at: float


def default_limit_bytes(folder: Path) -> int:
    """What the cache already takes and `FREE_SHARE` of what is free."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return sum(s.size_bytes for s in shelved(folder)) + int(shutil.disk_usage(existing).free * FREE_SHARE)


def shelved(folder: Path) -> list[Shelved]:
    """Every file of the cache, partial downloads too."""
    found = []
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # another worker of this cache has just removed it
            status = path.stat()
            found.append(Shelved(path, status.st_size, status.st_mtime))
    return found


def to_evict(files: list[Shelved], needed_bytes: int, limit_bytes: int) -> list[Shelved]:
    """Which files to try in which order until `needed_bytes` more fit; empty if they already do."""
    if sum(s.size_bytes for s in files) + needed_bytes <= limit_bytes:
        return []
    return sorted((s for s in files if s.path.suffix == ""), key=lambda s: (s.used_at, s.path))


class Shelf:
    """Keeps the blobs of `folder` under `limit_bytes`. Several processes may share the folder."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self._limit_bytes = folder, limit_bytes

    def make_room(self, name: str, needed_bytes: int) -> None:
        """Remove what was used longest ago until blob `name` of `needed_bytes` fits.

        Raises:
            Exhausted: it never fits, or what is in the way is being loaded.

        """
        files = shelved(self._folder)
        taken = sum(s.size_bytes for s in files)
        for file in to_evict(files, needed_bytes, self._limit_bytes):
            if taken + needed_bytes <= self._limit_bytes:
                break
            if removed(file.path):
                taken -= file.size_bytes
                log.info("blob %s left the cache size_bytes=%d", file.path.name[:12], file.size_bytes)
        if taken + needed_bytes > self._limit_bytes:
            raise Exhausted(
                f"blob {name} of {needed_bytes} bytes does not fit the cache in {self._folder}: {taken} of its "
                f"{self._limit_bytes} bytes are in use; raise --cache-limit"
            )


@contextlib.contextmanager
def in_use(path: Path) -> Iterator[Path]:
    """Keep a blob from being removed, and mark it as used now.

    Raises:
        FileNotFoundError: it has just been removed.

    """
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise FileNotFoundError(f"{path} was removed and fetched again")
        with contextlib.suppress(OSError):  # a cache that we may only read: somebody else looks after its size
            os.utime(file.fileno())
        yield path


def removed(path: Path) -> bool:
    """Remove a blob unless somebody uses it; whether it is gone."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    return True
