"""What executes requests, and which machine this is."""

from __future__ import annotations

import hashlib
import platform
import uuid
from pathlib import Path
from typing import Protocol

from expertmesh_common.channel.frame import Reply, Request


class ExpertHost(Protocol):
    """Runs experts. Errors are statuses of the reply; nothing is raised."""

    def execute(self, request: Request) -> Reply:
        """Sum over the pairs' experts, in expert order, of weight x expert(row): one row per input row."""
        ...


def host_id() -> str:
    """Equal in two processes only if they run under one kernel and see one file system: they may share unix sockets."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        files = str(Path("/proc/self/ns/mnt").readlink())
    except OSError:  # not Linux
        kernel, files = f"{platform.node()}-{uuid.getnode():x}", ""
    return hashlib.sha256(f"{kernel} {files}".encode()).hexdigest()[:16]
