"""How fast this gateway works, as measured: what waiting times are estimated from."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["UNMEASURED_SERVICE_S", "Pace", "Pacing"]

UNMEASURED_SERVICE_S = 1.0
"""What a request is taken to need before one has ended."""

_NEWEST_WEIGHT = 0.2


@dataclass(frozen=True, slots=True)
class Pace:
    """Recent means in seconds; None: not measured yet."""

    service_s: float | None = None
    """Of one request, from its first step to its end."""
    prompt_token_s: float | None = None
    """Of one prompt token while a chunk is read in, whoever decodes beside it."""

    @property
    def assumed_service_s(self) -> float:
        return UNMEASURED_SERVICE_S if self.service_s is None else self.service_s


class Pacing:
    """Keeps the means. Each of the two measurements comes from one thread; anyone may read `now`."""

    def __init__(self) -> None:
        self._service_s: float | None = None
        self._prompt_token_s: float | None = None

    @property
    def now(self) -> Pace:
        return Pace(self._service_s, self._prompt_token_s)

    def request_took(self, seconds: float) -> None:
        self._service_s = _moved(self._service_s, seconds)

    def chunk_took(self, seconds: float, tokens: int) -> None:
        self._prompt_token_s = _moved(self._prompt_token_s, seconds / tokens)


def _moved(mean: float | None, newest: float) -> float:
    return newest if mean is None else mean + _NEWEST_WEIGHT * (newest - mean)
