"""How the next token is chosen, as data, and what is allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from expertmesh_common.errors import InvalidInput

__all__ = ["GREEDY", "SamplingOptions", "checked"]

MAX_TEMPERATURE = 10.0
MAX_PENALTY = 10.0
MAX_TOP_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """Temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off.

    Applied in this order: repetition penalty, temperature, top_k, top_p, min_p.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    ignore_eos: bool = False

    @property
    def plain_greedy(self) -> bool:
        """The choice is the largest logit as it comes from the model."""
        return self.temperature == 0 and self.repetition_penalty == 1


GREEDY = SamplingOptions()


def checked(options: SamplingOptions, vocabulary: int) -> SamplingOptions:
    """The same options.

    Raises:
        InvalidInput: a value is out of its range or contradicts another; the message names the field.

    """
    _within("sampling.temperature", options.temperature, 0.0, MAX_TEMPERATURE)
    _within("sampling.top_k", options.top_k, 0, vocabulary)
    _within("sampling.top_p", options.top_p, 0.0, 1.0, open_below=True)
    _within("sampling.min_p", options.min_p, 0.0, 1.0)
    _within("sampling.seed", options.seed, 0, MAX_SEED)
    _within("sampling.repetition_penalty", options.repetition_penalty, 0.0, MAX_PENALTY, open_below=True)
    _within("sampling.top_logprobs", options.top_logprobs, 0, min(MAX_TOP_LOGPROBS, vocabulary))
    _check_stops(options.stop)
    if options.top_logprobs and not options.logprobs:
        raise InvalidInput(
            f"sampling.top_logprobs is {options.top_logprobs} but logprobs is false: set logprobs, or leave it 0"
        )
    return options


def _within(field: str, value: float, low: float, high: float, *, open_below: bool = False) -> None:
    if math.isfinite(value) and low <= value <= high and not (open_below and value == low):
        return
    lower = f"more than {low:g}" if open_below else f"{low:g}"
    raise InvalidInput(f"{field} is {value:g}: it must be from {lower} to {high:g}")


def _check_stops(stops: tuple[str, ...]) -> None:
    if len(stops) > MAX_STOPS:
        raise InvalidInput(f"sampling.stop has {len(stops)} strings: at most {MAX_STOPS} are allowed")
    for number, stop in enumerate(stops):
        if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
            allowed = f"it must have 1 to {MAX_STOP_CHARACTERS}"
            raise InvalidInput(f"sampling.stop[{number}] has {len(stop)} characters: {allowed}")
