"""A folder of blobs named by their sha256: written atomically, verified on every read that asks for it."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from expertmesh_common.bundle.manifest import Blob, Manifest, read_manifest
from expertmesh_common.errors import CorruptData, InvalidInput, NotHere

CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """`root/sha256/<digest>`. Safe for several writers: a blob appears whole or not at all."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "sha256"

    def path(self, digest: str) -> Path:
        """Where the blob is or would be.

        Raises:
            InvalidInput: the digest is not 64 hexadecimal digits (so it can never leave the folder).

        """
        if not _DIGEST.fullmatch(digest):
            raise InvalidInput(f"digest {digest[:80]!r} is not a lower-case sha256")
        return self.folder / digest

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def put(self, data: bytes) -> Blob:
        """Store bytes under their digest."""
        digest = hashlib.sha256(data).hexdigest()
        target = self.path(digest)
        if not target.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{digest}.{os.getpid()}.partial")
            try:
                partial.write_bytes(data)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
        return Blob(digest=digest, size_bytes=len(data))

    def verified(self, digest: str) -> Path:
        """The blob's path after reading it whole and comparing its digest.

        Raises:
            NotHere: there is no such blob.
            CorruptData: its bytes have another digest.

        """
        path = self.path(digest)
        try:
            found = file_digest(path)
        except FileNotFoundError:
            raise NotHere(f"blob {digest} is not in {self.folder}") from None
        if found != digest:
            raise CorruptData(f"blob {path} is corrupt: its sha256 is {found}; delete it and fetch it again")
        return path


def file_digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Bundle:
    """A model bundle on disk: its manifest and its blobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self.blobs = BlobStore(folder / "blobs")

    def path(self, blob: Blob) -> Path:
        """A blob's verified path."""
        return self.blobs.verified(blob.digest)
