"""A gateway of its own serves what the control loop says: models come and go as its list does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.clock import Clock
from expertmesh_common.errors import MeshError
from expertmesh_controller.cluster.bundles import Bundles, ServedBundle
from expertmesh_controller.cluster.models import ModelSpec
from expertmesh_controller.gateway.fetching import numerics_of, precision_of
from expertmesh_controller.gateway.hosting import ModelHost

__all__ = ["BundleFollower", "Changes", "changes"]

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""Between attempts to load what did not load, and to hear a control loop that refuses us."""


class BundleSource(Protocol):
    """Where the files of a served bundle come from."""

    async def bundle(self, wanted: ServedBundle) -> Bundle:
        """The bundle on this machine's disk; raises a MeshError if it cannot be had now."""
        ...


@dataclass(frozen=True, slots=True)
class Changes:
    """What to do so that what runs is what is wanted; a bundle that was replaced under its name ends first."""

    end: tuple[str, ...]
    load: tuple[ServedBundle, ...]


def changes(running: Mapping[str, ServedBundle], wanted: Mapping[str, ServedBundle]) -> Changes:
    """Compare by everything that makes a bundle what it is."""
    end = tuple(name for name, bundle in running.items() if wanted.get(name) != bundle)
    load = tuple(bundle for name, bundle in wanted.items() if running.get(name) != bundle)
    return Changes(end, load)


class BundleFollower:
    """`loaded` is set once everything of the first list is served: before that, nobody should be let in.

    A model ends as whoever took it away said; `drain_s` is for one that ended while nobody could be heard.
    """

    def __init__(
        self, bundles: Bundles, source: BundleSource, host: ModelHost, clock: Clock, *, slots: int, drain_s: float
    ) -> None:
        self._bundles, self._source, self._host, self._clock = bundles, source, host, clock
        self._slots, self._drain_s = slots, drain_s
        self._running: dict[str, ServedBundle] = {}
        self._wanted: dict[str, ServedBundle] | None = None
        self._drains_s: dict[str, float] = {}
        self._ending: dict[str, asyncio.Task[int]] = {}
        self._heard = asyncio.Event()
        self.loaded = asyncio.Event()

    async def run(self) -> None:
        """Follow until cancelled. Nothing ends while the control loop is away."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(), name="watch bundles")
            group.create_task(self._keep_up(group), name="serve bundles")

    async def _listen(self) -> None:
        while True:
            try:
                async for offer in self._bundles.watch():
                    self._wanted = {bundle.model: bundle for bundle in offer.bundles}
                    self._drains_s = {leaving.model: leaving.drain_s for leaving in offer.leaving}
                    self._heard.set()
            except MeshError as error:
                log.warning("the same models stay served: %s", error)
            await self._clock.sleep(RETRY_S)

    async def _keep_up(self, group: asyncio.TaskGroup) -> None:
        while True:
            self._heard.clear()
            done = self._wanted is None or await self._change(self._wanted, group)
            if done and self._wanted:
                self.loaded.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if done else RETRY_S):
                    await self._heard.wait()

    async def _change(self, wanted: Mapping[str, ServedBundle], group: asyncio.TaskGroup) -> bool:
        """Do what can be done now; whether that was all."""
        todo, whole = changes(self._running, wanted), True
        for name in todo.end:
            self._end(name, group)
        for bundle in todo.load:
            if bundle.model in self._ending:
                whole = False
                continue
            try:
                await self._load(bundle)
            except MeshError as error:
                log.warning("model %s is not served here yet: %s", bundle.model, error)
                whole = False
            except Exception:  # one that does not fit into memory, say, must not end those that run
                log.exception("model %s is not served here", bundle.model)
                whole = False
        return whole

    def _end(self, name: str, group: asyncio.TaskGroup) -> None:
        """Beside everything else: draining may take minutes."""
        drain_s = self._drains_s.get(name, self._drain_s)
        del self._running[name]
        ending = self._ending[name] = group.create_task(self._host.end(name, drain_s), name=f"end {name}")
        ending.add_done_callback(lambda _: self._ended(name))

    def _ended(self, name: str) -> None:
        del self._ending[name]
        self._heard.set()

    async def _load(self, bundle: ServedBundle) -> None:
        files = await self._source.bundle(bundle)
        spec = ModelSpec(
            bundle.model,
            files.folder,
            precision_of(bundle),
            self._slots,
            numerics=numerics_of(bundle),
            local_layers=bundle.local_layers,
        )
        loaded = await self._host.load(spec, files)
        await self._host.start(loaded)
        self._running[bundle.model] = bundle
        log.info("serving %s at %s", bundle.model, bundle.precision)
