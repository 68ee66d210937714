"""Standing back: a job worker shares its machine with what serves."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["yield_to_serving"]

NICENESS = 10
OOM_SCORE = 500


def yield_to_serving() -> None:
    """Let serving go first on the cores; and if memory runs out, this process and its children are the ones to go."""
    os.nice(NICENESS)
    with contextlib.suppress(OSError):  # other systems have no such file
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")
