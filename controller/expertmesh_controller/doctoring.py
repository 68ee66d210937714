"""What `expertmesh doctor` finds out about the controller's store: one is opened, written and closed."""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from expertmesh.cli.doctor.findings import Asked, Finding
from expertmesh_common.clock import SystemClock
from expertmesh_common.errors import MeshError
from expertmesh_controller.control.store.opening import open_store

AREA = "store"
TRY_S = 10.0
EMBEDDED = "embedded"


def check(asked: Asked) -> Iterator[Finding]:
    """The store that `--store` or EXPERTMESH_STORE names, else the private server that a controller starts."""
    named = asked.store or EMBEDDED
    name = named if named in (EMBEDDED, "memory") else "redis"
    with tempfile.TemporaryDirectory(prefix="expertmesh-") as folder:
        began = time.monotonic()
        try:
            asyncio.run(_try(named, Path(folder)))
        except (MeshError, TimeoutError) as error:
            yield Finding(AREA, name, "fail", _without_secrets(str(error) or f"no answer within {TRY_S:g} s"), _ADVICE)
            return
        yield Finding(AREA, name, "ok", f"opened and answered within {1000 * (time.monotonic() - began):.0f} ms")


_ADVICE = "check the URL and that the server runs; `--store memory` needs none, but forgets when it ends"


async def _try(named: str, folder: Path) -> None:
    async with asyncio.timeout(TRY_S):
        store = await open_store(named, folder, SystemClock())
        try:
            await store.get(f"doctor-{uuid.uuid4().hex}")
        finally:
            await store.close()


def _without_secrets(text: str) -> str:
    """The URL of a store may hold its password, and redis repeats the URL in some messages."""
    return text if "@" not in text else "it cannot be reached, or does not answer as a store does"
