"""The seam of the trunk: what runs attention, shared experts and the head, and where the key-value cache lives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Chunk", "Floats", "Sequences", "TrunkExecutor", "TrunkLimits", "Work"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TrunkLimits:
    """What a trunk was built for. `slots` sequences of up to `context_tokens`; chunks of up to `chunk_tokens`."""

    layers: int
    hidden: int
    vocabulary: int
    slots: int
    context_tokens: int
    chunk_tokens: int

    @property
    def head_rows(self) -> int:
        """Rows that go through the head at once: a full decode batch and the end of a prompt."""
        return self.slots + 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one prompt: `token_ids` int64 [S] go to positions start .. start + S - 1 of `slot`."""

    slot: int
    start: int
    token_ids: NDArray[np.int64]
    ends_prompt: bool


@dataclass(frozen=True, slots=True)
class Work:
    """One step: the next token of slots 0 .. B - 1, and at most one chunk of another slot.

    `decode_ids` int64 [B]; `decode_cached` int32 [B] counts the tokens that each slot's cache holds already. The same
    work may run again: it writes the same cache positions with the same values.
    """

    decode_ids: NDArray[np.int64]
    decode_cached: NDArray[np.int32]
    chunk: Chunk | None = None

    @property
    def rows(self) -> int:
        """Token rows of the step: decode rows first, then the chunk's."""
        return len(self.decode_ids) + (0 if self.chunk is None else len(self.chunk.token_ids))

    @property
    def logit_rows(self) -> int:
        """Rows of logits: the decode rows, then the chunk's last row if it ends its prompt."""
        return len(self.decode_ids) + (self.chunk is not None and self.chunk.ends_prompt)


class Sequences(ABC):
    """What any way of running a model shares: slots of sequences, and the head over the rows of the last step.

    Arrays handed out are views of buffers that the next call overwrites. One thread calls at a time.
    """

    limits: TrunkLimits

    @abstractmethod
    def chunk_logits(self, first: int, count: int) -> Floats:
        """After a step: logits float32 [count, vocabulary] of its chunk's rows from `first` on.

        At most `limits.head_rows` rows at once, so that memory does not grow with the chunk. Overwrites what the step
        and earlier calls returned.
        """

    @abstractmethod
    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` cached positions of slot `source` to slot `target`. Slot `limits.slots` is spare."""


class TrunkExecutor(Sequences):
    """Runs a step from stop to stop: `begin`, `advance` for every stop but the first, `finish`."""

    stops: tuple[int, ...]
    """The layers at which it hands out rows, in order: their experts are asked for elsewhere."""

    @abstractmethod
    def begin(self, work: Work) -> Floats:
        """Start a step; returns the rows for the first stop's experts, float32 [work.rows, hidden].

        Without stops what is returned means nothing, and `finish` is next.
        """

    @abstractmethod
    def advance(self, layer: int, combined: Floats) -> Floats:
        """Take what the experts of the stop before gave, float32 [work.rows, hidden]; returns the rows of `layer`."""

    @abstractmethod
    def finish(self, combined: Floats | None = None) -> Floats:
        """Take what the last stop's experts gave, if any; returns logits float32 [work.logit_rows, vocabulary]."""

    @abstractmethod
    def scores(self) -> Floats | None:
        """What the gates of experts in the graphs saw in a finished step, float32 [work.rows, layers, columns].

        Columns are the experts, perhaps with more after them. None where no graph has experts, or it does not tell.
        """
