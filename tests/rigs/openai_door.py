"""A whole gateway behind a real OpenAI door, with in-process experts, and the real client of OpenAI in front of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
from openai import AsyncOpenAI, OpenAI

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.security import Security
from expertmesh_controller.gateway.gateway import Gateway
from expertmesh_controller.gateway.models import ServedModels
from expertmesh_controller.gateway.openai.door import openai_app
from expertmesh_controller.gateway.settings import GatewaySettings
from expertmesh_controller.http_door import HttpDoor
from models.numpy_plane import NumpyPlane
from rigs.served_gateway import QuietRoutes

CONTEXT = 400
PROMPT = [5, 6, 7]
LONG = 380


class DoorHouse:
    """Made and used on one event loop; sync clients go through `asyncio.to_thread`. `held` as a `Gateway` takes it."""

    def __init__(
        self,
        bundle: Bundle,
        security: Security | None = None,
        *,
        stall_s: float = 30,
        held: frozenset[int] | None = None,
        **settings,
    ) -> None:
        self.plane = NumpyPlane(bundle)
        wanted = {"slots": 4, "context_tokens": CONTEXT, "prefill_chunk_tokens": 64, "queue_limit": 2, **settings}
        self.gateway = Gateway(bundle, "fp32", QuietRoutes(), self.plane, GatewaySettings(**wanted), held=held)
        self.models = ServedModels()
        self.models.add(self.gateway)
        self.security = security or Security()
        app = openai_app(self.models, self.security, stall_s=stall_s)
        self.door = HttpDoor(self.security.tls, 1.0, apps={"/v1": app})

    async def open(self) -> None:
        await self.gateway.start()
        self.port = await self.door.start("127.0.0.1:0")

    async def close(self) -> None:
        await self.door.stop()
        await self.gateway.stop()

    @property
    def url(self) -> str:
        scheme = "http" if self.security.tls is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}/v1"

    def client(self, **options: Any) -> AsyncOpenAI:
        return AsyncOpenAI(**self._options(options))

    def blocking_client(self, **options: Any) -> OpenAI:
        return OpenAI(**self._options(options))

    def raw(self, **options: Any) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.url, timeout=30, **options)

    async def emptied(self) -> None:
        """Return when every slot is free and nothing waits."""
        await eventually(lambda: not self.gateway.engine.outstanding)

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"base_url": self.url, "api_key": "none", "max_retries": 0, "timeout": 60, **options}


@contextlib.asynccontextmanager
async def door_house(bundle: Bundle, security: Security | None = None, **settings) -> AsyncIterator[DoorHouse]:
    house = DoorHouse(bundle, security, **settings)
    await house.open()
    try:
        yield house
    finally:
        await house.close()


async def eventually(condition: Callable[[], bool], within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - seen from outside: nothing signals it
            await asyncio.sleep(0.005)
