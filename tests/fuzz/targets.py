"""What is fuzzed, and with how much of the whole each: the same targets in the tests and in `make fuzz`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fuzz import frames, messages
from fuzz.doors import DECLARED, Code, Doors, methods, waits

__all__ = ["Target", "bytes_targets", "door_targets"]

SERVED_NAMES = ("", "tiny")


@dataclass(frozen=True, slots=True)
class Target:
    """Inputs, and a check that raises when one of them finds something; `share` is a part of all inputs."""

    name: str
    share: float
    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]

    def run(self, count: int, *, shrink: bool = True, seed: int | None = None) -> int:
        """Try `count` inputs; returns how many were tried. Raises what the check raises."""
        tried = 0

        def one(value: object) -> None:
            nonlocal tried
            tried += 1
            self.check(value)

        phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
        limits = settings(
            max_examples=count, deadline=None, database=None, phases=phases,
            suppress_health_check=list(HealthCheck), derandomize=seed is None,
        )  # fmt: skip
        test = limits(given(self.inputs)(one))
        if seed is not None:
            from hypothesis import seed as seeded

            test = seeded(seed)(test)
        test()
        return tried


def bytes_targets() -> list[Target]:
    """Frames and handshakes: half of all inputs."""
    anything = st.one_of(frames.broken(frames.requests()), frames.broken(frames.replies()))
    return [
        Target("frame decoders", 0.25, anything, frames.check_decoding),
        Target("worker answering frames", 0.2, frames.broken(frames.requests()), frames.check_answering),
        Target("handshake", 0.05, frames.greetings(), frames.check_greeting),
    ]


def door_targets(doors: Doors) -> list[Target]:
    """Every method of the public API, the other half; calls that wait by design cost time and get less of it."""
    found = methods()
    weights = [0.1 if waits(method) else 1.0 for method in found]
    return [
        Target(method.full_name, 0.5 * weight / sum(weights), _calls(method), _check(doors, method))
        for method, weight in zip(found, weights, strict=True)
    ]


def _calls(method: MethodDescriptor) -> st.SearchStrategy[list[bytes]]:
    single = messages.encoded(method.input_type)
    if method.name == "UnserveModel":  # taking the model away would end the fuzzing of all others
        single = single.filter(lambda data: not any(name.encode() in data for name in SERVED_NAMES[1:]) and data != b"")
    return st.lists(single, min_size=1, max_size=4 if method.client_streaming else 1)


def _check(doors: Doors, method: MethodDescriptor) -> Callable[[list[bytes]], None]:
    patient = waits(method)

    def check(sent: list[bytes]) -> None:
        outcome = doors.call(method, sent)
        assert outcome.code in DECLARED, f"{method.full_name} ended with {outcome.code.name}: {outcome.details}"
        if outcome.code is Code.DEADLINE_EXCEEDED:
            assert patient, f"{method.full_name} hangs: {outcome.details}"
        if outcome.code is not Code.OK and not patient:
            assert outcome.details, f"{method.full_name} ended with {outcome.code.name} and says nothing"

    return check
