"""The addresses of one client with their open channels."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import grpc
import grpc.aio

from expertmesh.attempts import Attempts
from expertmesh.calls import Call, Request, Response
from expertmesh.channel import Connection, Metadata, Tls
from expertmesh.errors import ExpertmeshError, FailedPrecondition, error_from_status
from expertmesh.picking import Picker, Way
from expertmesh.resuming import ResumePolicy
from expertmesh.tracing import trace_metadata

Channel = TypeVar("Channel")


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[Channel]):
    """One address: its channel, and what every call over it carries."""

    address: str
    channel: Channel
    metadata: Metadata

    def carried(self) -> Metadata:
        """What a call that is made now carries: who calls, and the trace that it belongs to."""
        return (*self.metadata, *trace_metadata())


class Endpoints(Generic[Channel]):
    """All of them. Channels connect when they are first used, and belong to the process that made them."""

    def __init__(self, connections: Sequence[Connection], opened: Callable[[Connection], Channel]) -> None:
        self._all = [Endpoint(c.address, opened(c), c.metadata()) for c in connections]
        self._picker = Picker(len(self._all))
        self._process_id = os.getpid()

    def __getitem__(self, place: int) -> Endpoint[Channel]:
        return self._all[place]

    @property
    def channels(self) -> list[Channel]:
        return [endpoint.channel for endpoint in self._all]

    def attempts(self, policy: ResumePolicy, deadline_s: float) -> Attempts:
        """The attempts of one call.

        Raises:
            FailedPrecondition: this process was forked from the one that made the client.
            InvalidRequest: `deadline_s` is not above 0.

        """
        if os.getpid() != self._process_id:
            raise FailedPrecondition(
                f"this client was made in process {self._process_id} before a fork: connections cannot be shared "
                "between processes, make a client in each of them"
            )
        return Attempts(policy, deadline_s, Way(self._picker))


def connections_of(addresses: Sequence[str], token: str | None, tls: Tls | None) -> list[Connection]:
    return [Connection(address, token, tls) for address in addresses]


def ask(
    endpoints: Endpoints[grpc.Channel], attempts: Attempts, call: Call[Request, Response], request: Request
) -> Response:
    """The answer to `request`, from whichever address gives one.

    Raises:
        ExpertmeshError: none does, the request is refused, or its deadline is over.

    """
    while True:
        place, remaining_s = attempts.next()
        at = endpoints[place]
        try:
            response = call.bind(at.channel)(request, timeout=remaining_s, metadata=at.carried())
        except grpc.RpcError as error:
            wait_s = attempts.failed(to_error(error, at.address), repeatable=call.repeatable)
        else:
            attempts.worked()
            return response
        time.sleep(wait_s)


def to_error(error: grpc.RpcError, address: str) -> ExpertmeshError:
    """The SDK's error for what gRPC raised; calls carry their status on the error itself."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    trailing = [(str(key), value) for key, value in error.trailing_metadata() or ()]
    return error_from_status(error.code(), error.details() or "", address, trailing)
