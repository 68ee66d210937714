"""How patient the keeper of jobs is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JobLimits:
    """Times in seconds."""

    look_s: float = 0.3
    """Between two looks at the job under way."""
    cancel_s: float = 10.0
    """A cancelled task that has not ended by itself after this is killed."""
    insist_s: float = 2.0
    """Between two attempts to kill it."""
