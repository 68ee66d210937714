"""The expert channel over a bidirectional gRPC stream.

The synchronous API is used on purpose: an asyncio channel would need a second event loop in the gateway's process (they
share one poller, so every event wakes both) or two thread changes per hop; measured, both are slower.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence

import grpc

from expertmesh_common.channel.layout import Chunk
from expertmesh_common.channel.messages import EXECUTE_METHOD, unwrap, wrap
from expertmesh_common.errors import CorruptData
from expertmesh_common.security import KEEPALIVE, MESSAGE_LIMITS, TLS_OPTIONS, Security
from expertmesh_controller.gateway.dispatch.links.base import FramedLink, LinkDown, LinkTimeout
from expertmesh_controller.gateway.dispatch.links.watchdog import Watchdog


def dial_blocking(address: str, security: Security) -> grpc.Channel:
    """A synchronous channel to `address`; calls on it pass `security.metadata()` themselves."""
    options = [*KEEPALIVE, *MESSAGE_LIMITS, ("grpc.use_local_subchannel_pool", 1)]
    credentials = security.channel_credentials()
    if credentials is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, credentials, [*options, *TLS_OPTIONS])


class GrpcLink(FramedLink):
    """Owns the channel and one Execute call on it."""

    def __init__(self, worker_id: str, channel: grpc.Channel, security: Security, watchdog: Watchdog) -> None:
        super().__init__(worker_id, "grpc")
        self._channel = channel
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        execute: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(EXECUTE_METHOD)
        self._call = execute(iter(self._outgoing.get, None), metadata=security.metadata())
        self._watchdog = watchdog
        self._limit = watchdog.guard(self._call.cancel)

    def send(self, frame: Sequence[Chunk], expires_at: float) -> None:  # noqa: ARG002 - the queue always takes it
        message = wrap(frame)
        self.frames += 1
        self.bytes_sent += len(message)
        self._outgoing.put(message)

    def receive(self, expires_at: float) -> memoryview:
        self._limit.expires_at = expires_at
        try:
            message = next(self._call)
            self.bytes_received += len(message)
            return unwrap(message)
        except StopIteration:
            raise LinkDown(f"worker {self.worker_id} ended its grpc link") from None
        except grpc.RpcError as error:
            if self._limit.passed:
                raise LinkTimeout(f"worker {self.worker_id} did not answer over grpc in time") from None
            raise self.failed(reason(error)) from error
        except CorruptData as error:
            raise self.failed(error) from error
        finally:
            self._limit.expires_at = None

    def close(self) -> None:
        self._watchdog.release(self._limit)
        self._outgoing.put(None)
        self._call.cancel()
        self._channel.close()


def reason(error: grpc.RpcError) -> str:
    """Status and details of a failed call in a line."""
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return str(error)
