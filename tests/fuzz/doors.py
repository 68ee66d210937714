"""Every method of the public API on real processes: any bytes in, the status out."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor

import expertmesh_api.v1
from e2e.running import RunningUp, running_up
from expertmesh import Client

HANG_S = 10.0
"""An answer that takes longer is a hang. Some calls wait by design, so they bring a short deadline of their own."""

_WAIT_S = 0.05
_ENOUGH = 3  # messages of an answer; the rest is cancelled
_ON_WORKERS = {"expertmesh_api.v1.Experts", "expertmesh_api.v1.Blobs"}

Code = grpc.StatusCode
DECLARED = frozenset({
    Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED,
    Code.UNAVAILABLE, Code.PERMISSION_DENIED, Code.UNAUTHENTICATED, Code.DATA_LOSS, Code.DEADLINE_EXCEEDED,
})  # fmt: skip


def methods() -> list[MethodDescriptor]:
    """All of `expertmesh_api.v1`, in a fixed order."""
    names = [module.name for module in pkgutil.iter_modules(expertmesh_api.v1.__path__)]
    files: list[FileDescriptor] = [
        importlib.import_module(f"expertmesh_api.v1.{name}").DESCRIPTOR for name in names if name.endswith("_pb2")
    ]
    services = [service for file in files for service in file.services_by_name.values()]
    return [method for service in services for method in service.methods]


def waits(method: MethodDescriptor) -> bool:
    """Whether it answers only when something happens."""
    return method.name.startswith(("Watch", "Wait"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended."""

    code: grpc.StatusCode
    details: str


class Doors:
    """A running mesh of real processes, reached method by method with raw bytes."""

    def __init__(self, up: RunningUp, controller: grpc.Channel, worker: grpc.Channel) -> None:
        self.up, self._controller, self._worker = up, controller, worker

    def call(self, method: MethodDescriptor, messages: Sequence[bytes]) -> Outcome:
        """Send `messages` (the first one only, if the method takes one) and read a few of the answers."""
        service = method.containing_service.full_name
        channel = self._worker if service in _ON_WORKERS else self._controller
        path = f"/{service}/{method.name}"
        timeout = _WAIT_S if waits(method) else HANG_S
        try:
            if method.client_streaming and method.server_streaming:
                _read_some(channel.stream_stream(path)(iter(messages), timeout=timeout))
            elif method.client_streaming:
                channel.stream_unary(path)(iter(messages), timeout=timeout)
            elif method.server_streaming:
                _read_some(channel.unary_stream(path)(messages[0], timeout=timeout))
            else:
                channel.unary_unary(path)(messages[0], timeout=timeout)
        except grpc.RpcError as error:
            return Outcome(error.code(), error.details() or "")  # type: ignore[attr-defined]
        return Outcome(Code.OK, "")

    def alive(self) -> bool:
        """The processes are those of the start, and the model answers."""
        before = dict(self.up.pids)
        self.up.refresh()
        with Client(self.up.address) as client:
            answer = client.complete(prompt_ids=[1, 2, 3], max_tokens=4, ignore_eos=True, deadline_s=30)
        return before == self.up.pids and len(answer.token_ids) == 4


def _read_some(call: grpc.Future) -> None:
    for _ in itertools.islice(call, _ENOUGH):
        pass
    call.cancel()


@contextlib.contextmanager
def opened(folder: Path, bundle: Path) -> Iterator[Doors]:
    """A controller and a worker with the bundle at `bundle`."""
    arguments = ["--model", str(bundle), "--listen", "127.0.0.1:0", "--workers", "1", "--budget-share", "1.0"]
    with running_up(folder, [*arguments, "--store", "memory", "--slots", "4"]) as up:
        with Client(up.address) as client:
            (node,) = client.nodes()
        address = next(e.removeprefix("grpc:") for e in node.endpoints if e.startswith("grpc:"))
        with grpc.insecure_channel(up.address) as controller, grpc.insecure_channel(address) as worker:
            yield Doors(up, controller, worker)
