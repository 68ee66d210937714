"""The store seam: what the control loop keeps, and the lease that says who may write it.

Every write carries a lease. A lease's `term` grows with every new holder, and a store refuses writes of any but the
newest term, so a leader that was replaced without noticing can change nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lease:
    """Leave to write under `name`."""

    name: str
    owner: str
    term: int


class Store(ABC):
    """Keys with bytes, and lists that grow at the end. Every method raises `Unavailable` when the store is gone."""

    url: str = ""
    """Where other processes reach the same store by the Redis protocol; empty if they cannot."""

    @abstractmethod
    async def acquire(self, name: str, owner: str, ttl_s: float, above: int = 0) -> Lease | None:
        """Take or renew the lease for `ttl_s` seconds; None while another owner holds it.

        A renewal keeps the term. A new holder's term is higher than any before and than `above`, so that terms grow
        even if the store lost its data.
        """

    @abstractmethod
    async def release(self, lease: Lease) -> None:
        """Give the lease back, if it is still ours."""

    @abstractmethod
    async def get(self, key: str) -> bytes | None:
        """The value of a key, or None."""

    @abstractmethod
    async def put(self, lease: Lease, key: str, value: bytes) -> None:
        """Set a key.

        Raises:
            Precondition: the lease's term is not the newest; nothing was written.

        """

    @abstractmethod
    async def append(self, lease: Lease, key: str, value: bytes, keep: int) -> None:
        """Add to the end of a list and drop all but its last `keep` values.

        Raises:
            Precondition: the lease's term is not the newest; nothing was written.

        """

    @abstractmethod
    async def tail(self, key: str, count: int) -> list[bytes]:
        """The last `count` values of a list, oldest first."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections and processes."""
