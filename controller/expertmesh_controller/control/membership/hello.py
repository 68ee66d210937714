"""How a worker introduces itself, and who is let in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from expertmesh_api.v1 import membership_pb2
from expertmesh_common.errors import InvalidInput, Precondition
from expertmesh_controller.cluster.routes import EndpointAddress
from expertmesh_controller.control.catalogue import ExpertKey

TRANSPORTS = ("grpc", "tcp", "unix")
_WORKER_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
_VERSION = re.compile(r"^(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a worker measured of itself; see the protocol for units."""

    cores: int
    memory_bytes: int
    budget_bytes: int
    gemv_gb_per_s: float
    gemm_gflops: float
    speed_rows_per_s: float
    providers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resident:
    """What a loaded expert consists of, counts against the budget, and how it computes."""

    digest: str
    resident_bytes: int
    numerics: str = "exact"


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of a worker. `generation` is new at every start of its process."""

    worker_id: str
    generation: str
    version: str
    host_id: str
    capabilities: Capabilities
    endpoints: tuple[EndpointAddress, ...]
    resident: Mapping[ExpertKey, Resident]


def read_hello(message: membership_pb2.Hello, own_version: str) -> Hello:
    """The checked introduction.

    Raises:
        InvalidInput: a field is missing or wrong.
        Precondition: the versions are too far apart.

    """
    if not _WORKER_ID.match(message.worker_id):
        raise InvalidInput(f"worker_id {message.worker_id[:140]!r}: use 1 to 128 letters, digits, '.', '_' or '-'")
    if not message.generation:
        raise InvalidInput(f"worker {message.worker_id}: generation is empty; it must be new at every start")
    if message.capabilities.budget_bytes == 0:
        raise InvalidInput(f"worker {message.worker_id}: budget_bytes is 0, so it could hold no expert; set --budget")
    speed = message.capabilities.speed_rows_per_s
    if not math.isfinite(speed) or speed < 0:
        raise InvalidInput(f"worker {message.worker_id}: speed_rows_per_s is {speed}; it must be a finite number >= 0")
    endpoints = tuple(EndpointAddress.from_proto(e) for e in message.endpoints)
    if not any(e.transport == "grpc" for e in endpoints):
        raise InvalidInput(f"worker {message.worker_id}: no grpc endpoint; gateways dial that first, whatever they use")
    check_versions(message.worker_id, message.version, own_version)
    return Hello(
        message.worker_id,
        message.generation,
        message.version,
        message.host_id,
        _capabilities(message.capabilities),
        endpoints,
        {ExpertKey.from_ref(r.expert, r.precision): _resident(r) for r in message.resident},
    )


def _resident(message: membership_pb2.ResidentExpert) -> Resident:
    numerics = "fast" if message.fast_digest else "exact"
    return Resident(message.fast_digest or message.digest, message.resident_bytes, numerics)


def _capabilities(message: membership_pb2.Capabilities) -> Capabilities:
    return Capabilities(
        message.cores,
        message.memory_bytes,
        message.budget_bytes,
        message.gemv_gb_per_s,
        message.gemm_gflops,
        message.speed_rows_per_s,
        tuple(message.providers),
    )


def check_versions(worker_id: str, theirs: str, ours: str) -> None:
    """One minor version apart works.

    Raises:
        InvalidInput: their version is not one.
        Precondition: they are further apart.

    """
    found, own = _VERSION.match(theirs), _VERSION.match(ours)
    if found is None or own is None:
        raise InvalidInput(f"worker {worker_id}: version {theirs[:40]!r} is not like {ours}")
    (major, minor), (own_major, own_minor) = (tuple(map(int, m.groups())) for m in (found, own))
    if major != own_major or abs(minor - own_minor) > 1:
        raise Precondition(
            f"worker {worker_id} has version {theirs}, this controller {ours}: at most one minor version apart works; "
            f"upgrade the {'worker' if (major, minor) < (own_major, own_minor) else 'controller'}"
        )
