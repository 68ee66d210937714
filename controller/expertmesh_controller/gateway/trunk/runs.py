"""Which segments run in one call: from the experts of one stop to those of the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Run", "runs_of"]


@dataclass(frozen=True, slots=True)
class Run:
    """Layers `first` to `last`. A run that `asks` ends in front of the experts of `last`; those before are in it."""

    first: int
    last: int
    asks: bool

    @property
    def layers(self) -> range:
        return range(self.first, self.last + 1)


def runs_of(layers: int, stops: Sequence[int]) -> tuple[Run, ...]:
    """The runs of a model of `layers` layers whose experts of `stops`, in order, are asked for elsewhere.

    What comes after the last stop is one more run; where the last layer is a stop, the head comes at once.
    """
    firsts = [0, *(stop + 1 for stop in stops)]
    asking = tuple(Run(first, stop, asks=True) for first, stop in zip(firsts, stops, strict=False))
    return asking if firsts[-1] == layers else (*asking, Run(firsts[-1], layers - 1, asks=False))
