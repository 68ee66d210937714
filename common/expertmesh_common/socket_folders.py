"""Temporary folders for unix sockets: their paths have a hundred bytes at most, and some machines' TMPDIR has more."""

from __future__ import annotations

import tempfile
from pathlib import Path

LONGEST_ROOT = 60
"""Leaves room for nested folders (`/expertmesh-xxxxxxxx` each) and the socket's name within 104 bytes."""

FALLBACK = Path("/tmp")  # noqa: S108 - only a root; every folder below it is made privately by tempfile


def socket_root() -> str:
    """Where to make temporary folders that hold sockets: the usual place, or a shorter one if that is too deep."""
    usual = tempfile.gettempdir()
    return str(FALLBACK) if len(usual) > LONGEST_ROOT and FALLBACK.is_dir() else usual
