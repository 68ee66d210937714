"""A controller and its workers, started in order, watched, and ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from expertmesh.aio_client import AsyncClient
from expertmesh.channel import Tls
from expertmesh.errors import DeadlineExceeded, ExpertmeshError
from expertmesh.types import Node, Readiness
from expertmesh_common.clock import Clock
from expertmesh_common.errors import Unavailable
from expertmesh_common.security import Security, TlsFiles, dial
from expertmesh_controller.local.children import Child
from expertmesh_controller.local.local_model import LocalModel
from expertmesh_controller.local.plan import MB, UpRequest, budget_bytes, controller_spec, gateway_specs, worker_specs

_CONTROLLER_START_S = 120.0
_READY_S = 300.0
_LOOK_EVERY_S = 2.0
_LOOKS = 3
_PROGRESS_EVERY_S = 0.25

Result = TypeVar("Result")
Progress = Callable[[tuple[Node, ...]], None]


@dataclass(frozen=True, slots=True)
class RunningProcess:
    name: str
    pid: int | None


@dataclass(frozen=True, slots=True)
class MeshState:
    """What runs now. `address` is what local clients dial; `addresses` are those of all gateways, it first.

    The same holds of the OpenAI doors' URLs.
    """

    address: str
    addresses: tuple[str, ...]
    token: str | None
    tls_folder: Path | None
    budget_bytes: int
    processes: tuple[RunningProcess, ...]
    openai_base_url: str | None = None
    openai_base_urls: tuple[str, ...] = ()


class LocalMesh:
    """Start with `start`, then `watch` until something cannot be kept running, then always `stop`."""

    def __init__(
        self,
        request: UpRequest,
        models: Sequence[LocalModel],
        environment: Mapping[str, str],
        *,
        clock: Clock,
        tell: Callable[[str], None],
        changed: Callable[[MeshState], None],
    ) -> None:
        self._request = request
        self._budget = budget_bytes(models, request)
        self._notify = changed
        self._controller = Child(controller_spec(request, environment), clock, tell, self._changed)
        gateways = gateway_specs(request, environment)
        self._gateways = tuple(Child(spec, clock, tell, self._changed) for spec in gateways)
        specs = worker_specs(request, self._budget, environment)
        self._workers = tuple(Child(spec, clock, tell, self._changed) for spec in specs)

    @property
    def state(self) -> MeshState:
        children = (self._controller, *self._gateways, *self._workers)
        processes = tuple(RunningProcess(child.spec.name, child.pid) for child in children)
        request = self._request
        addresses = request.dial_addresses
        doors = request.openai_base_urls
        return MeshState(
            addresses[0], addresses, request.token, request.tls, self._budget, processes,
            next(iter(doors), None), doors,
        )  # fmt: skip

    async def start(self, progress: Progress) -> tuple[Node, ...]:
        """Start everything; returns the workers once every expert is served.

        Raises:
            Unavailable: a process cannot be kept running.
            expertmesh.DeadlineExceeded: it took too long.

        """
        request = self._request
        await self._controller.start()
        await self._or_ended(asyncio.create_task(self._reachable(request.dial_address, self._controller)))
        for child in (*self._gateways, *self._workers):
            await child.start()
        nodes = await self._or_ended(asyncio.create_task(self._ready(progress)))
        for address, gateway in zip(request.dial_addresses[1:], self._gateways, strict=True):
            await self._or_ended(asyncio.create_task(self._reachable(address, gateway)))
        return nodes

    async def watch(self) -> None:
        """Return never; raises Unavailable when a process cannot be kept running."""
        await asyncio.wait(self._keepers(), return_when=asyncio.FIRST_COMPLETED)
        self._raise_ended()

    async def stop(self) -> None:
        """The controller first, so that it does not move experts away from workers that end with it."""
        await self._controller.stop()
        await asyncio.gather(*(gateway.stop() for gateway in self._gateways))  # their answers still need the workers
        await asyncio.gather(*(worker.stop() for worker in self._workers))

    def _changed(self) -> None:
        self._notify(self.state)

    def _keepers(self) -> list[asyncio.Task[None]]:
        return [child.keeper for child in (self._controller, *self._gateways, *self._workers) if child.started]

    def _raise_ended(self) -> None:
        for keeper in self._keepers():
            if keeper.done():
                keeper.result()
                raise Unavailable(f"{keeper.get_name()} ended")

    async def _or_ended(self, work: asyncio.Task[Result]) -> Result:
        """The result of `work`, unless a child gives up first."""
        try:
            await asyncio.wait([work, *self._keepers()], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self._raise_ended()
            return await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _reachable(self, address: str, child: Child) -> None:
        request = self._request
        tls = None if request.tls is None else TlsFiles.in_folder(request.tls)
        async with dial(address, Security(tls, request.token)) as channel:
            try:
                await asyncio.wait_for(channel.channel_ready(), _CONTROLLER_START_S)
            except TimeoutError:
                raise Unavailable(
                    f"{child.spec.name} did not answer on {address} within {_CONTROLLER_START_S:g} s: "
                    f"{child.last_words()}"
                ) from None

    async def _settled(self, client: AsyncClient) -> None:
        """Return when every expert is served.

        Raises:
            Unavailable: every worker is there, nothing moves any more, and they have no room for all experts.

        """
        end, still, before = time.monotonic() + _READY_S, 0, None
        while time.monotonic() < end:
            with contextlib.suppress(DeadlineExceeded):
                found = await client.wait_ready(deadline_s=_LOOK_EVERY_S)
                if not found.missing_bytes:
                    return
                # Workers that have just joined have no placement yet: only what stays missing is missing.
                still = still + 1 if found == before and found.workers >= self._request.workers else 0
                before = found
                if still >= _LOOKS:
                    _check_room(found)
        raise Unavailable(f"the mesh was not ready within {_READY_S:g} s: {self._controller.last_words()}")

    async def _ready(self, progress: Progress) -> tuple[Node, ...]:
        request = self._request
        tls = None if request.tls is None else Tls.in_folder(request.tls)
        async with AsyncClient(request.dial_address, token=request.token, tls=tls) as client:
            showing = asyncio.create_task(_show(client, progress))
            try:
                await self._settled(client)
            finally:
                showing.cancel()
                await asyncio.gather(showing, return_exceptions=True)
            nodes = await client.nodes()
            progress(nodes)
            return nodes


def _check_room(found: Readiness) -> None:
    if found.missing_bytes:
        raise Unavailable(
            f"{found.workers} workers have no room for {found.missing_bytes / MB:.1f} MB of experts: "
            "raise --budget-share, or --workers"
        )


async def _show(client: AsyncClient, progress: Progress) -> None:
    while True:
        with contextlib.suppress(ExpertmeshError):  # a display that misses one picture shows the next
            progress(await client.nodes())
        await asyncio.sleep(_PROGRESS_EVERY_S)
