"""Why the tokens of a text go where they go: the text runs through the served model, the gates tell what they did."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from expertmesh_api.v1 import gating_pb2
from expertmesh_common.clock import Clock
from expertmesh_common.errors import InvalidInput, Precondition
from expertmesh_controller.gateway.answering import Caller
from expertmesh_controller.gateway.batching.engine import Engine
from expertmesh_controller.gateway.batching.forward import HIDDEN
from expertmesh_controller.gateway.batching.jobs import Scoring
from expertmesh_controller.gateway.gating.explain import Explanation
from expertmesh_controller.gateway.gating.gate import Gate
from expertmesh_controller.gateway.gating.tensors import to_tensor
from expertmesh_controller.gateway.requests import bounded
from expertmesh_controller.gateway.scoring import read_choices
from expertmesh_controller.gateway.text.codec import TextCodec

__all__ = ["MAX_TOKENS", "TextExplainer"]

MAX_TOKENS = 512
"""The answer holds every score: 512 tokens of 30 layers with 8 experts make 1.6 MB."""

DEFAULT_DEADLINE_S = 120.0

Holders = Callable[[int], Mapping[int, Sequence[str]]]
"""layer -> expert index -> worker ids that hold it now."""


class TextExplainer:
    """Explains texts for one model. The text takes a slot of the engine like a prompt; nothing is generated."""

    def __init__(
        self,
        engine: Engine,
        codec: TextCodec,
        gates: Sequence[Gate],
        holders: Holders,
        clock: Clock,
        *,
        context_tokens: int,
        shows_rows: bool = True,
    ) -> None:
        self._engine, self._codec, self._gates, self._holders, self._clock = engine, codec, gates, holders, clock
        self._most_tokens = min(MAX_TOKENS, context_tokens)
        self._shows_rows = shows_rows

    async def explain(
        self, request: gating_pb2.ExplainTextRequest, deadline_s: float | None, caller: Caller, model: str
    ) -> gating_pb2.ExplainTextResponse:
        """Every gate's decision about every token; closing the call frees the slot.

        Raises:
            Precondition: the gateway's graphs span several layers, and show no rows between them.
            InvalidInput: the text is missing or has too many tokens, or the model has no chat template.
            Exhausted, Unavailable, DeadlinePassed: as for an answer.

        """
        if not self._shows_rows:  # in the engine it would end the answers that share the step, too
            raise Precondition(HIDDEN)
        ids = await asyncio.to_thread(self._ids, request)
        seen = _Seen(self._gates, len(ids))
        deadline = self._clock.monotonic() + (DEFAULT_DEADLINE_S if deadline_s is None else deadline_s)
        # The engine does not read in the last token of a scored text: the one that is added is never looked at.
        scoring = Scoring((*ids, ids[-1]), len(ids) + 1, deadline, tap=seen)
        ticket = self._engine.submit(scoring, caller.name)
        try:
            await read_choices(ticket)
        finally:
            self._engine.cancel(ticket)
        layers = [_layer(layer, found, self._holders(layer)) for layer, found in enumerate(seen.explanations())]
        pieces = [self._codec.text_bytes(i).decode("utf-8", "replace") or name for i, name in self._named(ids)]
        return gating_pb2.ExplainTextResponse(model=model, token_ids=ids, pieces=pieces, layers=layers)

    def _named(self, ids: Sequence[int]) -> Iterable[tuple[int, str]]:
        """Ids with their names in the vocabulary: special tokens have no text of their own."""
        return zip(ids, self._codec.pieces(ids), strict=True)

    def _ids(self, request: gating_pb2.ExplainTextRequest) -> list[int]:
        if not request.text:
            raise InvalidInput("text is empty: there is nothing to explain")
        text = bounded("text", request.text, self._most_tokens)
        question = {"role": "user", "content": text}
        ids = self._codec.encode_chat([question]) if request.as_question else self._codec.encode(text)
        if not 0 < len(ids) <= self._most_tokens:
            raise InvalidInput(f"text has {len(ids)} tokens: allowed are 1 to {self._most_tokens}")
        return ids


class _Seen:
    """What the gates decided about the rows that passed; a step that ran again overwrites what it wrote."""

    def __init__(self, gates: Sequence[Gate], tokens: int) -> None:
        self._gates, self._tokens = gates, tokens
        self._parts: list[dict[int, Explanation]] = [{} for _ in gates]

    def take(self, layer: int, first: int, rows: NDArray[np.float32]) -> None:
        """See `Tap.take`."""
        self._parts[layer][first] = self._gates[layer].explain(np.ascontiguousarray(rows))

    def explanations(self) -> list[Explanation]:
        """One per layer, over all tokens."""
        return [_joined([part for _, part in sorted(parts.items())]) for parts in self._parts]


def _joined(parts: Sequence[Explanation]) -> Explanation:
    columns = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("score", "picked", "weight", "margin")
    )
    return Explanation(parts[0].rule, *columns)


def _layer(layer: int, found: Explanation, holders: Mapping[int, Sequence[str]]) -> gating_pb2.LayerExplanation:
    experts = found.score.shape[1]
    return gating_pb2.LayerExplanation(
        layer=layer,
        rule=found.rule,
        score=to_tensor("score", found.score),
        picked=to_tensor("picked", found.picked.astype(np.uint8)),
        weight=to_tensor("weight", found.weight),
        margin=to_tensor("margin", found.margin),
        holders=[gating_pb2.Holders(worker_ids=holders.get(index, ())) for index in range(experts)],
    )
