"""Pairs of a frame grouped by expert."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.errors import InvalidInput

Index = slice | NDArray[np.intp]


class Group(NamedTuple):
    """One expert, its ascending and distinct rows, and the positions of their pairs in the frame, in that order.

    Neighbouring rows are a slice: selecting them copies nothing.
    """

    expert: int
    rows: Index
    pairs: Index


def by_expert(row: NDArray[np.uint32], expert: NDArray[np.uint16], rows: int) -> Iterator[Group]:
    """Groups in ascending order of experts, for pairs in any order over `rows` rows.

    Raises:
        InvalidInput: a pair occurs twice.

    """
    keys = expert.astype(np.intp) * rows + row
    order = None
    if not (keys[1:] > keys[:-1]).all():
        order = np.argsort(keys)
        keys = keys[order]
        if not (keys[1:] > keys[:-1]).all():
            raise InvalidInput("a pair of row and expert occurs twice in one frame")
    experts, positions = np.divmod(keys, rows)
    ends = np.append(np.flatnonzero(experts[1:] != experts[:-1]) + 1, len(keys))[: len(keys)]
    lasts = ends - 1
    start = 0
    for end, number, last in zip(ends.tolist(), experts[lasts].tolist(), positions[lasts].tolist(), strict=True):
        first = int(positions[start])
        neighbours = last - first == end - 1 - start
        where = slice(first, last + 1) if neighbours else positions[start:end]
        yield Group(number, where, slice(start, end) if order is None else order[start:end])
        start = end
