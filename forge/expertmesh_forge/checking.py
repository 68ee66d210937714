"""Judging emitted tokens against the plain reference: equal, tied or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import Precision
from expertmesh_forge.dense_model import Floats
from expertmesh_forge.errors import BundleError
from expertmesh_forge.reference import Expectation, ReferenceModel

__all__ = ["TIE_MARGIN", "Difference", "ReferenceCheck", "check_tokens", "judge"]

TIE_MARGIN = 1e-4


@dataclass(frozen=True, slots=True)
class Difference:
    """An emitted token that is not the reference's; margins are relative to scale.

    `tie` is true if the logit margin (top-1 to top-2) or a router margin of the row that was sampled is under
    `TIE_MARGIN`: then either token is right.
    """

    position: int
    emitted: int
    expected: int
    logit_margin: float
    router_margin: float
    tie: bool


@dataclass(frozen=True, slots=True)
class ReferenceCheck:
    """The judgement of one greedy answer.

    `reference_tokens[i]` is what the reference picks after the prompt and the emitted tokens before i, so one
    difference does not make the rest differ. `upstream_router_ties` counts prompt and answer rows with a router margin
    under `TIE_MARGIN`: where it is 0, no expert choice could have gone either way.
    """

    reference_tokens: tuple[int, ...]
    differences: tuple[Difference, ...]
    upstream_router_ties: int

    @property
    def exact(self) -> bool:
        """Every token equals the reference's."""
        return not self.differences

    @property
    def equal(self) -> bool:
        """Every token equals the reference's but for reported ties."""
        return all(difference.tie for difference in self.differences)

    @property
    def ties(self) -> tuple[Difference, ...]:
        return tuple(difference for difference in self.differences if difference.tie)


def check_tokens(
    bundle: Bundle | ReferenceModel,
    prompt_ids: Sequence[int],
    emitted_ids: Sequence[int],
    precision: Precision = "fp32",
) -> ReferenceCheck:
    """Check a greedy answer in one pass; give a `ReferenceModel` to check several without loading again."""
    if not prompt_ids:
        raise BundleError("a check needs a prompt of at least one token")
    model = bundle if isinstance(bundle, ReferenceModel) else ReferenceModel(bundle, precision)
    if not emitted_ids:
        return ReferenceCheck((), (), 0)
    text = [*prompt_ids, *emitted_ids]
    return judge(model.expect(text[:-1]), len(prompt_ids), np.array(emitted_ids, np.int64))


def judge(expected: Expectation, prompt_tokens: int, emitted: npt.NDArray[np.int64]) -> ReferenceCheck:
    """Compare emitted tokens with the rows that predict them; pure."""
    logits = expected.logits[prompt_tokens - 1 :]
    routers = expected.router_margins[prompt_tokens - 1 :]
    chosen = logits.argmax(axis=1)
    margins = _logit_margins(logits)
    differences = tuple(
        Difference(
            position=int(place),
            emitted=int(emitted[place]),
            expected=int(chosen[place]),
            logit_margin=float(margins[place]),
            router_margin=float(routers[place]),
            tie=bool(min(margins[place], routers[place]) < TIE_MARGIN),
        )
        for place in np.flatnonzero(chosen != emitted)
    )
    return ReferenceCheck(
        reference_tokens=tuple(int(token) for token in chosen),
        differences=differences,
        upstream_router_ties=int(np.count_nonzero(expected.router_margins < TIE_MARGIN)),
    )


def _logit_margins(logits: Floats) -> Floats:
    """Top-1 minus top-2, relative to the row's largest magnitude: [rows, vocab] -> [rows]."""
    second, first = np.partition(logits, -2, axis=1)[:, -2:].T
    margins: Floats = (first - second) / np.abs(logits).max(axis=1)
    return margins
