"""Settings of a worker, read once when it starts."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path

from expertmesh_common.errors import InvalidInput

BUDGET_SHARE = 0.6  # of the free memory: the rest is for the runtime, buffers, and the machine's other work

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Everything a worker process is told from outside."""

    join: str
    """The controller: `host:port` or `unix:path`."""
    worker_id: str
    """Its name in the mesh; two workers of one name replace each other."""
    cache: Path
    """Folder of fetched blobs; several workers may share it."""
    token: str | None = None
    """What the controller demands, and what callers of this worker must present."""
    tls: Path | None = None
    """Folder with ca.pem, cert.pem and key.pem; None is plain text."""
    cache_limit_bytes: int | None = None
    """Most bytes that the cache folder may take; None takes what it has and 80 % of what is free at the start."""
    budget_bytes: int | None = None
    """Hard limit of resident expert bytes; None takes `BUDGET_SHARE` of what is free."""
    listen: str | None = None
    """`host:port`; None takes the address that the controller is reached from, and any free port."""
    stream_port: int = 0
    """TCP port of expert streams, for firewalls; 0 takes any free one."""
    advertise: str | None = None
    """The host that gateways dial, if it is not the one that we listen on."""
    provider: str = "cpu"
    threads: int = 1
    """Frames computed at once. One per core; processes scale better at single rows."""
    spin_us: int = 0
    """How long a stream is polled for the next request before sleeping; only with a core for every process."""
    declared_speed: float | None = None
    """Rows per second to report instead of the measured ones, for operators who want less work here."""
    metrics_listen: str = "auto"
    """Where metrics and probes are: `host:port`, `auto` (loopback, any free port) or `off`."""
    otlp: str | None = None
    """Where traces go; None takes what OpenTelemetry's own variables say, by default nowhere."""
    drain_s: float = 5.0
    """How long frames in flight may take after a signal to end."""


def parse_bytes(text: str) -> int:
    """A size such as `96MB`, `1GiB`, `1.5 gb` or `1048576`, in bytes.

    Raises:
        InvalidInput: it is not one.

    """
    match = _SIZE.fullmatch(text)
    unit = None if match is None else _UNITS.get(match[2].lower())
    if match is None or unit is None or float(match[1]) * unit < 1:
        raise InvalidInput(f"size {text!r} is not valid: write bytes or a number with kB, MB, GB, KiB, MiB or GiB")
    return int(float(match[1]) * unit)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 host stands in brackets.

    Raises:
        InvalidInput: it is not one.

    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise InvalidInput(f"address {address!r} is not valid: write host:port")
    return host.strip("[]"), int(port)


def listen_address(settings: WorkerSettings) -> str:
    """Where to listen: as told, or on the interface that faces the controller.

    Raises:
        InvalidInput: the controller's address is not valid or its name does not resolve.

    """
    if settings.listen is not None:
        split_address(settings.listen)
        return settings.listen
    if settings.join.startswith("unix:"):
        return "127.0.0.1:0"
    return _joined(_facing(*split_address(settings.join)), 0)


def advertised_host(settings: WorkerSettings, listening: str) -> str:
    """What gateways dial: a wildcard address is nothing to dial, so then the interface that faces the controller."""
    if settings.advertise is not None:
        return settings.advertise
    host, _ = split_address(listening)
    if host not in {"0.0.0.0", "::"}:
        return host
    return "127.0.0.1" if settings.join.startswith("unix:") else _facing(*split_address(settings.join))


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _facing(host: str, port: int) -> str:
    """The local address of packets to `host`; connecting a datagram socket sends none."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port or 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise InvalidInput(f"the controller's address {host} cannot be reached: {error}; check --join") from error
