"""The models that this gateway serves now: a request goes to the one that it names."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Protocol

from expertmesh_api.v1 import gating_pb2, inference_pb2
from expertmesh_common.errors import InvalidInput, NotHere
from expertmesh_controller.gateway.answering import Caller
from expertmesh_controller.gateway.gating.explaining_text import TextExplainer
from expertmesh_controller.gateway.gating.gate import Gate
from expertmesh_controller.gateway.latencies import Latencies
from expertmesh_controller.gateway.model_answers import ModelAnswers

__all__ = ["ServedModels", "Serves"]


class Serves(Protocol):
    """What has answers of one model to give: a `Gateway`."""

    @property
    def name(self) -> str: ...

    @property
    def inference(self) -> ModelAnswers: ...

    @property
    def latencies(self) -> Latencies: ...

    @property
    def gates(self) -> Sequence[Gate]: ...

    @property
    def explainer(self) -> TextExplainer: ...

    def holders(self, layer: int) -> Mapping[int, list[str]]:
        """Expert index -> the workers that hold it now."""
        ...


class ServedModels:
    """`Answering` for every model of this gateway. Used on one event loop; models come and go between requests."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def add(self, model: Serves) -> None:
        """Let requests in.

        Raises:
            InvalidInput: its name is taken.

        """
        if model.name in self._entries:
            raise InvalidInput(f"model {model.name!r} is served already: give the second one a name of its own")
        self._entries[model.name] = _Entry(model)

    def refuse(self, name: str) -> None:
        """Let no new request in; those under way are not touched."""
        self._entries[name].leaving = True

    async def idle(self, name: str) -> None:
        """Wait until no request for the model is under way."""
        await self._entries[name].idle.wait()

    def under_way(self, name: str) -> int:
        """Requests for the model that have begun and not ended."""
        entry = self._entries.get(name)
        return 0 if entry is None else entry.requests

    def remove(self, name: str) -> None:
        """Forget the model; its name is free again."""
        del self._entries[name]

    @property
    def serving(self) -> Mapping[str, Serves]:
        """The models that take requests, by name."""
        return {name: entry.model for name, entry in sorted(self._entries.items()) if not entry.leaving}

    def name_of(self, asked: str) -> str:
        """The name of the served model that a request names; "" when that is none."""
        names = list(self.serving)
        return asked if asked in names else names[0] if len(names) == 1 and not asked else ""

    async def generate(
        self, request: inference_pb2.GenerateRequest, deadline_s: float | None, caller: Caller
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        """See `Answering.generate`."""
        with self._request(request.model) as model:
            answer = model.inference.generate(request, deadline_s, caller)
            last: inference_pb2.GenerateResponse | None = None
            async with contextlib.aclosing(answer):
                async for last in answer:
                    yield last
            if last is not None and last.HasField("finished"):
                model.latencies.note(last.finished)

    async def tokenize(self, request: inference_pb2.TokenizeRequest) -> inference_pb2.TokenizeResponse:
        """See `Answering.tokenize`."""
        with self._request(request.model) as model:
            return await model.inference.tokenize(request)

    async def score(
        self, request: inference_pb2.ScoreRequest, deadline_s: float | None, caller: Caller
    ) -> inference_pb2.ScoreResponse:
        """See `Answering.score`."""
        with self._request(request.model) as model:
            return await model.inference.score(request, deadline_s, caller)

    async def explain_text(
        self, request: gating_pb2.ExplainTextRequest, deadline_s: float | None, caller: Caller
    ) -> gating_pb2.ExplainTextResponse:
        """Why the tokens of a text go where they go; raises as `Answering` does."""
        with self._request(request.model) as model:
            return await model.explainer.explain(request, deadline_s, caller, model.name)

    async def list_models(self) -> inference_pb2.ListModelsResponse:
        """See `Answering.list_models`."""
        return inference_pb2.ListModelsResponse(models=[m.inference.listing() for m in self.serving.values()])

    def fingerprint(self, model: str) -> str:
        """See `Answering.fingerprint`."""
        entry = self._entries.get(model)
        return "" if entry is None else entry.model.inference.served.fingerprint

    @contextlib.contextmanager
    def _request(self, name: str) -> Iterator[Serves]:
        """A request for a model is under way.

        Raises:
            InvalidInput: it names none of several models.
            NotHere: it names one that is not served.

        """
        entry = self._pick(name)
        entry.requests += 1
        entry.idle.clear()
        try:
            yield entry.model
        finally:
            entry.requests -= 1
            if not entry.requests:
                entry.idle.set()

    def _pick(self, name: str) -> _Entry:
        serving = self.serving
        named = name or (next(iter(serving)) if len(serving) == 1 else "")
        if named in serving:
            return self._entries[named]
        others = f"this gateway serves {', '.join(serving) or 'no model now'}"
        if name in self._entries:
            raise NotHere(f"model {name!r} is being taken away and takes no new requests; {others}")
        if name:
            raise NotHere(f"model {name[:128]!r} is not served here; {others}")
        if serving:
            raise InvalidInput(f"model is missing; {others}: name one of them")
        raise NotHere(f"model is missing; {others}")


class _Entry:
    """A model, and how many requests for it are under way; `idle` is set while there are none."""

    __slots__ = ("idle", "leaving", "model", "requests")

    def __init__(self, model: Serves) -> None:
        self.model = model
        self.requests = 0
        self.leaving = False
        self.idle = asyncio.Event()
        self.idle.set()
