"""What the users of a model saw lately, to be held against what they were promised."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from expertmesh_api.v1 import inference_pb2
from expertmesh_common.clock import Clock

__all__ = ["Latencies", "Seen"]

MOST_ANSWERS = 4096
"""Percentiles over more recent answers than this would say nothing else."""


@dataclass(frozen=True, slots=True)
class Seen:
    """95th percentiles in milliseconds, 0 where nothing was seen; `answers` of them."""

    ttft_p95_ms: float = 0.0
    token_p95_ms: float = 0.0
    answers: int = 0


class Latencies:
    """Complete answers of the last `window_s` seconds."""

    def __init__(self, window_s: float, clock: Clock) -> None:
        self._window_s, self._clock = window_s, clock
        self._answers: deque[tuple[float, float, float | None]] = deque(maxlen=MOST_ANSWERS)

    def note(self, answer: inference_pb2.Finished) -> None:
        """Count an answer; one without a second token has no time between tokens."""
        gaps = answer.completion_tokens - 1
        token_ms = (answer.total_ms - answer.ttft_ms) / gaps if gaps > 0 else None
        self._answers.append((self._clock.monotonic(), answer.ttft_ms, token_ms))

    def seen(self) -> Seen:
        oldest = self._clock.monotonic() - self._window_s
        while self._answers and self._answers[0][0] < oldest:
            self._answers.popleft()
        ttfts = [ttft_ms for _, ttft_ms, _ in self._answers]
        return Seen(_p95(ttfts), _p95([ms for _, _, ms in self._answers if ms is not None]), len(ttfts))


def _p95(values: Sequence[float]) -> float:
    """The smallest value that 95 % are not above."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1] if values else 0.0
