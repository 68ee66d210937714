"""Scoring a text inside the engine: a prompt of which every row is looked at, and after which nothing is generated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.errors import CorruptData
from expertmesh_controller.gateway.batching.jobs import Scored, Scoring, Ticket
from expertmesh_controller.gateway.batching.planning import ChunkPlan
from expertmesh_controller.gateway.batching.roster import Sequence
from expertmesh_controller.gateway.sampling.choosing import Choice, described, likeliest, unusable
from expertmesh_controller.gateway.trunk.executor import Sequences

__all__ = ["ScoringJob", "scored"]


class ScoringJob:
    """A text that is being scored: row i tells how likely token i + 1 is, so the last token is never read in."""

    def __init__(self, request: Scoring, ticket: Ticket) -> None:
        self.request, self.ticket = request, ticket
        self._ids = np.array(request.ids, np.int64)
        self._done = 0

    @property
    def progress(self) -> str:
        return f"{self._done} of {len(self._ids) - self.request.first} scored tokens"

    def ids(self, start: int, count: int) -> NDArray[np.int64]:
        return self._ids[start : start + count]

    def sequence(self) -> Sequence:
        ticket, tokens, deadline = self.ticket, len(self._ids) - 1, self.request.deadline
        return Sequence(ticket.key, tokens, ticket.facts.admitted, deadline, client=ticket.client, scored=True)

    def asked_rows(self, chunk: ChunkPlan) -> range:
        """Rows of the chunk that tell something asked for."""
        return range(max(0, self.request.first - 1 - chunk.start), chunk.count)

    def targets(self, chunk: ChunkPlan, rows: range) -> list[int]:
        """The token that each of `rows` is asked about."""
        first = chunk.start + rows.start + 1
        targets: list[int] = self._ids[first : first + len(rows)].tolist()
        return targets

    def take(self, choices: list[Choice]) -> Scored:
        self._done += len(choices)
        return Scored(tuple(choices))


def scored(trunk: Sequences, job: ScoringJob, chunk: ChunkPlan) -> Scored:
    """What the chunk that just went through `trunk` tells; the head runs over a few rows at a time.

    Raises:
        CorruptData: the model gave values that are not numbers.

    """
    choices: list[Choice] = []
    rows, step = job.asked_rows(chunk), trunk.limits.head_rows
    for block in (rows[at : at + step] for at in range(0, len(rows), step)):
        logits = trunk.chunk_logits(block.start, len(block))
        if any(unusable(logits, likeliest(logits))):
            where = f"within {len(block)} tokens from position {chunk.start + block.start + 1} of the text"
            raise CorruptData(f"the model gave values that are not numbers {where}: check the bundle with its digests")
        targets = job.targets(chunk, block)
        choices += [
            described(row, target, job.request.top_logprobs) for row, target in zip(logits, targets, strict=True)
        ]
    return job.take(choices)
