"""Where blobs come from: `Blobs` services, one kept-open connection each."""

from __future__ import annotations

import asyncio
from typing import Protocol

import grpc.aio

from expertmesh_api.v1 import blobs_pb2, blobs_pb2_grpc
from expertmesh_common.errors import CorruptData
from expertmesh_common.security import Security, dial

STALL_S = 10.0  # a source that sends nothing for this long is given up for the next one


class Sink(Protocol):
    """What bytes are appended to."""

    @property
    def size_bytes(self) -> int: ...

    def append(self, data: bytes) -> None: ...


class Sources:
    """Pulls blobs from addresses. Close it when done."""

    def __init__(self, security: Security, stall_s: float = STALL_S) -> None:
        self._security = security
        self._stall_s = stall_s
        self._channels: dict[str, grpc.aio.Channel] = {}

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
        if address not in self._channels:
            self._channels[address] = dial(address, self._security)
        return self._channels[address]
