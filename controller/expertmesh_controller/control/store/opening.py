"""From the `--store` flag to a store."""

from __future__ import annotations

from pathlib import Path

from expertmesh_common.clock import Clock
from expertmesh_common.errors import InvalidInput
from expertmesh_controller.control.store.base import Store

SCHEMES = ("redis://", "rediss://", "unix://")


async def open_store(name: str, data_folder: Path, clock: Clock) -> Store:
    """The store called `name`: "memory", "embedded" (its data in `data_folder`), or a redis:// URL.

    Raises:
        InvalidInput: `name` is none of these.
        NotHere, Precondition, Unavailable: the embedded server cannot run.

    """
    if name == "memory":
        from expertmesh_controller.control.store.memory_store import MemoryStore  # noqa: PLC0415

        return MemoryStore(clock)
    if name == "embedded":
        from expertmesh_controller.control.store.embedded_store import EmbeddedStore  # noqa: PLC0415

        return await EmbeddedStore.open(data_folder, clock)
    if name.startswith(SCHEMES):
        from expertmesh_controller.control.store.redis_store import RedisStore  # noqa: PLC0415

        return RedisStore(name)
    raise InvalidInput(f"store {name!r} is unknown: use memory, embedded, or a URL with {', '.join(SCHEMES)}")
