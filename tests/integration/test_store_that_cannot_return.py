"""An embedded store that cannot be started again is a store that is away, not the end of the controller."""

import asyncio
import os
import signal

import pytest

from expertmesh_common.clock import SystemClock
from expertmesh_common.errors import Unavailable
from expertmesh_controller.control.store.embedded_store import EmbeddedStore
from expertmesh_controller.control.store.private_server import PrivateServer


async def test_every_call_fails_as_unavailable_until_the_server_can_start_again(tmp_path, monkeypatch):
    store = await EmbeddedStore.open(tmp_path / "data", SystemClock(), restart_s=0.0)
    start = PrivateServer.start

    async def no_room(_server: PrivateServer) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PrivateServer, "start", no_room)
    os.kill(store.server.pid, signal.SIGKILL)
    await asyncio.to_thread(store.server._process.wait)
    for _ in range(3):
        with pytest.raises(Unavailable):
            await store.get("k")

    monkeypatch.setattr(PrivateServer, "start", start)
    with pytest.raises(Unavailable):
        await store.get("k")  # this one finds it dead and starts it
    assert await store.get("k") is None
    await store.close()
