"""A store in this process's memory: for tests, and for controllers that may forget."""

from __future__ import annotations

from expertmesh_common.clock import Clock
from expertmesh_common.errors import Precondition
from expertmesh_controller.control.store.base import Lease, Store


class MemoryStore(Store):
    """Dies with the process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._holders: dict[str, tuple[str, float]] = {}
        self._terms: dict[str, int] = {}
        self._values: dict[str, bytes] = {}
        self._lists: dict[str, list[bytes]] = {}

    async def acquire(self, name: str, owner: str, ttl_s: float, above: int = 0) -> Lease | None:
        now = self._clock.monotonic()
        holder, until = self._holders.get(name, ("", now))
        held = until > now
        if held and holder != owner:
            return None
        if not held:
            self._terms[name] = max(self._terms.get(name, 0), above) + 1
        self._holders[name] = (owner, now + ttl_s)
        return Lease(name, owner, self._terms[name])

    async def release(self, lease: Lease) -> None:
        if self._holders.get(lease.name, ("", 0.0))[0] == lease.owner:
            del self._holders[lease.name]

    async def get(self, key: str) -> bytes | None:
        return self._values.get(key)

    async def put(self, lease: Lease, key: str, value: bytes) -> None:
        self._fence(lease)
        self._values[key] = value

    async def append(self, lease: Lease, key: str, value: bytes, keep: int) -> None:
        self._fence(lease)
        self._lists[key] = [*self._lists.get(key, []), value][-keep:]

    async def tail(self, key: str, count: int) -> list[bytes]:
        return self._lists.get(key, [])[-count:]

    async def close(self) -> None:
        """Nothing is held."""

    def _fence(self, lease: Lease) -> None:
        newest = self._terms.get(lease.name, 0)
        if lease.term != newest:
            raise Precondition(f"lease {lease.name!r} of term {lease.term} is over: term {newest} holds it now")
