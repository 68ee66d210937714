"""The map of experts: a row per layer, a column per expert. Pure: placements in, cells and a legend out."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from expertmesh.types import ExpertPlacement

By = Literal["replicas", "rows", "worker"]

NOBODY = "-"
LETTERS = string.ascii_lowercase + string.ascii_uppercase
LEVELS = 5
"""Shades from cold to hot; level 0 is "nobody holds it"."""


PLACES = 4
"""Up to so many workers, each has a place of its own in a cell."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What a person reads, and how hot it is: 0 (missing), then 1 to `LEVELS`."""

    text: str
    level: int


@dataclass(frozen=True, slots=True)
class HeatMap:
    """`cells[row][column]` of layer `layers[row]`; a layer with fewer experts has fewer cells."""

    model: str
    layers: tuple[int, ...]
    cells: tuple[tuple[Cell, ...], ...]
    legend: tuple[str, ...]

    @property
    def columns(self) -> int:
        return max((len(row) for row in self.cells), default=0)


def heat_maps(placements: Iterable[ExpertPlacement], by: By) -> tuple[HeatMap, ...]:
    """One map per model, ordered by name."""
    models: dict[str, list[ExpertPlacement]] = {}
    for placement in placements:
        models.setdefault(placement.model, []).append(placement)
    return tuple(_map(model, members, by) for model, members in sorted(models.items()))


def _map(model: str, members: Sequence[ExpertPlacement], by: By) -> HeatMap:
    layers: dict[int, list[ExpertPlacement]] = {}
    for expert in sorted(members, key=lambda e: (e.layer, e.index)):
        layers.setdefault(expert.layer, []).append(expert)
    cell, legend = _SHOWING[by](members)
    missing = sum(not expert.worker_ids for expert in members)
    if missing:
        legend = (*legend, f"{NOBODY} = on no worker now ({missing} of {len(members)})")
    return HeatMap(model, tuple(layers), tuple(tuple(cell(e) for e in row) for row in layers.values()), legend)


Show = tuple[Callable[[ExpertPlacement], Cell], tuple[str, ...]]


def _by_replicas(members: Sequence[ExpertPlacement]) -> Show:
    most = max((len(e.worker_ids) for e in members), default=0)

    def cell(expert: ExpertPlacement) -> Cell:
        count = len(expert.worker_ids)
        return Cell(str(count) if count else NOBODY, _level(count, most))

    return cell, ("number = workers that hold the expert",)


def _by_rows(members: Sequence[ExpertPlacement]) -> Show:
    totals: dict[int, int] = {}
    for expert in members:
        totals[expert.layer] = totals.get(expert.layer, 0) + expert.rows
    most = max((_share(e, totals) for e in members), default=0.0)

    def cell(expert: ExpertPlacement) -> Cell:
        share = _share(expert, totals)
        text = f"{100 * share:.0f}" if expert.worker_ids else NOBODY
        return Cell(text, _level(share, most) if expert.worker_ids else 0)

    rows = sum(totals.values())
    return cell, (f"number = percent of its layer's rows; {rows or 'no'} rows since the controller started",)


def _by_worker(members: Sequence[ExpertPlacement]) -> Show:
    letters = letters_of(members)
    held: dict[str, int] = dict.fromkeys(letters, 0)
    for expert in members:
        for worker_id in expert.worker_ids:
            held[worker_id] += 1

    def cell(expert: ExpertPlacement) -> Cell:
        return Cell(_holders(expert, letters), min(len(expert.worker_ids), LEVELS))

    return cell, tuple(f"{letter} = {worker_id} ({held[worker_id]} experts)" for worker_id, letter in letters.items())


_SHOWING: Mapping[By, Callable[[Sequence[ExpertPlacement]], Show]] = {
    "replicas": _by_replicas,
    "rows": _by_rows,
    "worker": _by_worker,
}


def letters_of(members: Iterable[ExpertPlacement]) -> dict[str, str]:
    """A sign per worker: letters while they last, then numbers in brackets."""
    workers = sorted({worker_id for expert in members for worker_id in expert.worker_ids})
    return {w: LETTERS[i] if i < len(LETTERS) else f"[{i + 1}]" for i, w in enumerate(workers)}


def _holders(expert: ExpertPlacement, letters: Mapping[str, str]) -> str:
    """`a.c`: few workers have a place each, so that columns can be compared; of many only the holders are named."""
    if not expert.worker_ids:
        return NOBODY
    if len(letters) <= PLACES:
        return "".join(letter if worker_id in expert.worker_ids else "." for worker_id, letter in letters.items())
    return "".join(letter for worker_id, letter in letters.items() if worker_id in expert.worker_ids)


def _share(expert: ExpertPlacement, totals: Mapping[int, int]) -> float:
    return expert.rows / totals[expert.layer] if totals[expert.layer] else 0.0


def _level(value: float, most: float) -> int:
    """1 to LEVELS by the part of the greatest value; 0 for none."""
    return 0 if value <= 0 or most <= 0 else max(1, round(LEVELS * value / most))
