"""What keeping models asks of the gateway in the same process. The two share no code: `gateway` has a class like it."""

from __future__ import annotations

from typing import Protocol, TypeVar

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_controller.cluster.models import ModelSpec


class Closing(Protocol):
    """A model in memory that may be thrown away."""

    async def close(self) -> None: ...


class Seen(Protocol):
    """What a model's users saw lately: 95th percentiles in milliseconds, 0 where nothing was seen."""

    @property
    def ttft_p95_ms(self) -> float: ...

    @property
    def token_p95_ms(self) -> float: ...


Loaded = TypeVar("Loaded", bound=Closing)


class Hosting(Protocol[Loaded]):
    """Loads, serves and ends models."""

    async def load(self, spec: ModelSpec, bundle: Bundle) -> Loaded:
        """Load everything but the experts, beside the event loop."""
        ...

    async def start(self, loaded: Loaded) -> None:
        """Let requests in."""
        ...

    async def end(self, name: str, drain_s: float) -> int:
        """Refuse new requests, let running ones end within `drain_s` seconds, free the memory; how many were cut."""
        ...

    def under_way(self, name: str) -> int: ...

    def seen(self, name: str) -> Seen: ...


class _Nothing:
    """A model in no memory."""

    ttft_p95_ms = 0.0
    token_p95_ms = 0.0

    async def close(self) -> None:
        return None


class NoGateway:
    """The hosting of a controller whose gateways all run in processes of their own."""

    async def load(self, spec: ModelSpec, bundle: Bundle) -> _Nothing:  # noqa: ARG002 - the signature of the protocol
        return _Nothing()

    async def start(self, loaded: _Nothing) -> None:
        """See `Hosting.start`."""

    async def end(self, name: str, drain_s: float) -> int:  # noqa: ARG002 - the signature of the protocol
        return 0

    def under_way(self, name: str) -> int:  # noqa: ARG002 - the signature of the protocol
        return 0

    def seen(self, name: str) -> _Nothing:  # noqa: ARG002 - the signature of the protocol
        return _Nothing()
