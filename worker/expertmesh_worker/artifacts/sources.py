"""Where blobs come from: `Blobs` services, one kept-open connection each."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Protocol

import grpc.aio

from expertmesh_api.v1 import blobs_pb2, blobs_pb2_grpc
from expertmesh_common.errors import CorruptData
from expertmesh_common.security import Security, dial
from expertmesh_common.tls import Stamp

STALL_S = 10.0  # a source that sends nothing for this long is given up for the next one


class Sink(Protocol):
    """What bytes are appended to."""

    @property
    def size_bytes(self) -> int: ...

    def append(self, data: bytes) -> None: ...


class Sources:
    """Pulls blobs from addresses. Close it when done.

    `peers` is how to call anybody but the controller at `origin`, whom `security` is for.
    """

    def __init__(
        self, security: Security, stall_s: float = STALL_S, *, peers: Security | None = None, origin: str = ""
    ) -> None:
        self._security, self._peers, self._origin = security, peers or security, origin
        self._stall_s = stall_s
        self._channels: dict[tuple[str, Stamp], grpc.aio.Channel] = {}
        self.fetched_bytes: Counter[str] = Counter()
        """By address, since the start."""

    async def pull(self, address: str, digest: str, size_bytes: int, sink: Sink) -> None:
        """Append what `sink` lacks of the blob.

        Raises:
            AioRpcError: the source refused, failed or went away; what came before stays in the sink.
            TimeoutError: it stopped sending.
            CorruptData: it has a blob of another size.

        """
        stub = blobs_pb2_grpc.BlobsStub(self._channel(address))
        call = stub.Fetch(blobs_pb2.FetchRequest(digest=digest, offset=sink.size_bytes))
        try:
            while True:
                async with asyncio.timeout(self._stall_s):
                    message = await call.read()
                if not isinstance(message, blobs_pb2.FetchResponse):  # the end
                    break
                if message.total_bytes != size_bytes or sink.size_bytes + len(message.data) > size_bytes:
                    raise CorruptData(f"it holds {message.total_bytes} bytes, expected {size_bytes}")
                await asyncio.to_thread(sink.append, message.data)
                self.fetched_bytes[address] += len(message.data)
        except TimeoutError:
            raise TimeoutError(f"no data for {self._stall_s:g} s") from None
        finally:
            call.cancel()
        if sink.size_bytes != size_bytes:
            raise CorruptData(f"it ended after {sink.size_bytes} of {size_bytes} bytes")

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    def _channel(self, address: str) -> grpc.aio.Channel:
        """A kept channel: one made with certificates that were replaced since would not get through again."""
        security = self._security if address == self._origin else self._peers
        key = (address, () if security.tls is None else security.tls.stamp())
        if key not in self._channels:
            self._channels[key] = dial(address, security)
        return self._channels[key]
