"""The default store: a private server child process behind the Redis client that production uses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

from expertmesh_common.clock import Clock
from expertmesh_common.errors import MeshError, Unavailable
from expertmesh_controller.control.store.private_server import PrivateServer
from expertmesh_controller.control.store.redis_store import RedisStore

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class EmbeddedStore(RedisStore):
    """Keeps its server alive: a server that died is started again, at most every `restart_s` seconds."""

    def __init__(self, server: PrivateServer, clock: Clock, restart_s: float = 1.0) -> None:
        super().__init__(server.url)
        self.server = server
        self._clock = clock
        self._restart_s = restart_s
        self._started_at = clock.monotonic()
        self._starting = asyncio.Lock()

    @classmethod
    async def open(cls, data_folder: Path, clock: Clock, restart_s: float = 1.0) -> EmbeddedStore:
        """Start the server over `data_folder`. Raises what `PrivateServer.start` raises."""
        server = PrivateServer(data_folder)
        try:
            await server.start()
        except MeshError:
            await server.stop()
            raise
        return cls(server, clock, restart_s)

    async def close(self) -> None:
        await super().close()
        await self.server.stop()

    async def _ask(self, answer: Awaitable[Answer]) -> Answer:
        try:
            return await super()._ask(answer)
        except Unavailable:
            await self._revive()
            raise

    async def _revive(self) -> None:
        """Start a dead server again; the call that found it dead still fails, the next one finds it."""
        async with self._starting:
            if self.server.pid is None and self._clock.monotonic() - self._started_at >= self._restart_s:
                self._started_at = self._clock.monotonic()
                log.warning("the embedded store ended; starting it again")
                try:
                    await self.server.start()
                except (MeshError, OSError) as error:
                    raise Unavailable(f"the embedded store cannot be started again: {error}") from error
