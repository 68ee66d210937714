"""The keeper of models: which are served, changed at run time and kept over restarts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from expertmesh_common.clock import Clock
from expertmesh_common.errors import CorruptData, InvalidInput, MeshError, NotHere, Precondition, Unavailable
from expertmesh_controller.cluster.bundles import LeavingModel
from expertmesh_controller.cluster.models import ModelSpec
from expertmesh_controller.control.catalogue import ServedModel
from expertmesh_controller.control.models.hosting import Hosting, Loaded, Seen
from expertmesh_controller.control.models.kept import Kept, Loop, State
from expertmesh_controller.control.models.opening import OpenedModel, check_share, open_model
from expertmesh_controller.control.models.record import MODELS_KEY, ModelsRecord, models_at_start
from expertmesh_controller.control.store.base import Store

log = logging.getLogger(__name__)

READ_AGAIN_S = 1.0
QUIET_S = 2.5
"""Gateways report every second: one that reported nothing for so long has nothing under way."""

Result = TypeVar("Result")


class ModelKeeper:
    """Used on one event loop. A change goes on to its end even if whoever asked for it is gone."""

    def __init__(
        self, loop: Loop, hosting: Hosting[Loaded], store: Store, clock: Clock, given: Sequence[ModelSpec]
    ) -> None:
        self._loop, self._hosting, self._store, self._clock = loop, hosting, store, clock
        self._given = tuple(given)
        self._models: dict[str, Kept] = {}
        self._opening: dict[str, asyncio.Event] = {}
        self._writing = asyncio.Lock()
        self._restored = False
        self._changes: set[asyncio.Task[Any]] = set()

    def kept(self) -> tuple[Kept, ...]:
        return tuple(kept for _, kept in sorted(self._models.items()))

    def under_way(self, name: str) -> int:
        return self._hosting.under_way(name)

    def seen(self, name: str) -> Seen:
        return self._hosting.seen(name)

    async def start(self) -> None:
        """Serve what the settings say, or what was served before a restart. `restore` goes on where the store is away.

        Raises:
            MeshError: a model of the settings cannot be served.

        """
        try:
            wanted = await self._wanted()
        except Unavailable as error:
            log.warning("what was served before is not known yet: %s", error)
            wanted = self._given
        given = {spec.path for spec in self._given}
        for spec in wanted:
            try:
                await self._begin(spec)
            except MeshError as error:
                if spec.path in given:
                    raise
                self._failed(spec, error)

    async def restore(self) -> None:
        """Return once the store has said what was served before a restart, and that is served again."""
        while not self._restored:
            await self._clock.sleep(READ_AGAIN_S)
            try:
                wanted = await self._wanted()
            except Unavailable:
                continue
            names = {spec.name for spec in wanted}
            for spec in wanted:
                if spec.path not in {kept.spec.path for kept in self._models.values()}:
                    await self._begin_or_note(spec)
            for name in self._models.keys() - names if all(names) else ():
                await self._end(name, 0.0)

    async def serve(self, spec: ModelSpec) -> Kept:
        """Serve one more model; returns when its trunk is loaded. What is served already like this stays.

        Raises:
            InvalidInput, NotHere, CorruptData: the model cannot be served like this; the message names what is wrong.
            Precondition: one copy of every expert does not fit into the model's share of the budgets.
            Unavailable: nothing can be written down now, so nothing was done.

        """
        return await self._to_its_end(self._serve(spec))

    async def unserve(self, name: str, drain_s: float) -> int:
        """Take a model away; returns how many requests were cut off after `drain_s` seconds.

        Raises:
            NotHere: no such model is served.
            Precondition: it is being loaded or taken away already.
            Unavailable: nothing can be written down now, so nothing was done.

        """
        return await self._to_its_end(self._unserve(name, drain_s))

    async def _serve(self, spec: ModelSpec) -> Kept:
        opened = await asyncio.to_thread(open_model, spec)
        name = opened.spec.name
        while (kept := self._same(opened)) is not None:
            if kept.state == "serving":
                return kept
            await self._opening[name].wait()  # somebody asked for it, perhaps the same client in a first attempt
        self._check_name(name)
        check_share(opened, self._loop.view())
        await self._load(opened, write=True)
        return self._models[name]

    def _same(self, opened: OpenedModel) -> Kept | None:
        """What is served, or about to be, exactly like this."""
        kept = self._models.get(opened.spec.name)
        same = kept is not None and (kept.spec, kept.digest) == (opened.spec, opened.digest)
        return kept if same and kept is not None and kept.state in {"opening", "serving"} else None

    async def _begin(self, spec: ModelSpec) -> None:
        """Serve a model that is on record."""
        opened = await asyncio.to_thread(open_model, spec)
        self._check_name(opened.spec.name)
        await self._load(opened, write=False)

    async def _begin_or_note(self, spec: ModelSpec) -> None:
        try:
            await self._begin(spec)
        except MeshError as error:
            self._failed(spec, error)

    async def _load(self, opened: OpenedModel, *, write: bool) -> None:
        name = opened.spec.name
        before, self._opening[name] = self._models.get(name), asyncio.Event()
        self._models[name] = Kept(opened.spec, "opening", opened)
        try:
            loaded = await self._hosting.load(opened.spec, opened.bundle)
            try:
                await self._begin_serving(name, write=write)
                await self._hosting.start(loaded)
            except BaseException:
                await loaded.close()
                raise
        except BaseException:
            del self._models[name]
            if before is not None:
                self._models[name] = before
            self._publish()
            raise
        finally:
            self._opening.pop(name).set()
        log.info("serving %s at %s from %s", name, opened.spec.precision, opened.spec.path)

    async def _begin_serving(self, name: str, *, write: bool) -> None:
        serving = replace(self._models[name], state="serving")
        async with self._writing:
            if write:
                await self._write({**self._models, name: serving})
            self._models[name] = serving
        self._publish()

    async def _unserve(self, name: str, drain_s: float) -> int:
        kept = self._models.get(name)
        if kept is None:
            raise NotHere(f"model {name[:128]!r} is not served here; served: {', '.join(self._models) or 'none'}")
        if kept.state not in {"serving", "failed"}:
            raise Precondition(f"model {name!r} is {kept.state}: try again when that has ended")
        self._models[name] = replace(kept, state="draining")
        try:
            async with self._writing:
                await self._write({n: k for n, k in self._models.items() if n != name})
        except MeshError:
            self._models[name] = kept
            raise
        return await self._end(name, drain_s)

    async def _end(self, name: str, drain_s: float) -> int:
        """Gateway first: its running answers need the experts until they end."""
        self._models[name] = replace(self._models[name], state="draining", drain_s=drain_s)
        self._publish()
        until = self._clock.monotonic() + drain_s
        cut = await self._hosting.end(name, drain_s)
        await self._ended_elsewhere(name, until)
        del self._models[name]
        self._publish()
        log.info("no longer serving %s cut_requests=%d", name, cut)
        return cut

    async def _ended_elsewhere(self, name: str, until: float) -> None:
        """Other gateways report the rows they sent every second: experts stay while one reports some for the model."""
        while self._loop.other_gateways and self._clock.monotonic() < until:
            before = self._rows(name)
            await self._clock.sleep(min(QUIET_S, max(until - self._clock.monotonic(), 0.0)))
            if self._rows(name) == before:
                return

    def _rows(self, name: str) -> int:
        return sum(rows for (model, _, _), rows in self._loop.view().rows.items() if model == name)

    async def _wanted(self) -> tuple[ModelSpec, ...]:
        try:
            record = ModelsRecord.decode(await self._store.get(MODELS_KEY))
        except CorruptData as error:
            log.error("serving what the settings say: %s", error)  # noqa: TRY400 - the message says it all
            record = None
        self._restored = True
        return models_at_start(self._given, record)

    async def _write(self, models: dict[str, Kept]) -> None:
        if not self._restored:
            raise Unavailable("the store has not said yet what was served before: try again in a moment")
        specs = tuple(kept.spec for kept in models.values() if kept.state in {"serving", "failed"})
        await self._loop.keep(MODELS_KEY, ModelsRecord(self._given, specs).encode())

    def _publish(self) -> None:
        """Answers that drain still need their experts, but no gateway may begin to serve their model."""
        self._loop.serve(self._served("serving", "draining"))
        leaving = [LeavingModel(kept.spec.name, kept.drain_s) for kept in self.kept() if kept.state == "draining"]
        self._loop.offer(self._served("serving"), leaving)

    def _served(self, *states: State) -> list[ServedModel]:
        return [k.opened.served for _, k in sorted(self._models.items()) if k.opened is not None and k.state in states]

    def _failed(self, spec: ModelSpec, error: MeshError) -> None:
        log.error("model %s of the last run cannot be served again: %s", spec.name, error)
        self._models[spec.name] = Kept(spec, "failed", error=str(error))

    def _check_name(self, name: str) -> None:
        kept = self._models.get(name)
        if kept is not None and kept.state != "failed":
            raise InvalidInput(f"a model named {name!r} is {kept.state} already: give this one a name of its own")

    async def _to_its_end(self, change: Coroutine[Any, Any, Result]) -> Result:
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)
