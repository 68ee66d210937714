"""From flags to an UpRequest: defaults that make the printed lines work, and no more open than asked for."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from expertmesh.local_access import home_folder
from expertmesh_common.access.tokens import new_token, split_token
from expertmesh_common.bundle.manifest import PRECISIONS, Numerics, Precision
from expertmesh_common.errors import InvalidInput
from expertmesh_controller.cluster.local_layers import NONE, checked_ranges
from expertmesh_controller.cluster.models import NUMERICS
from expertmesh_controller.local.gateways import further_doors, further_listens
from expertmesh_controller.local.local_model import find_bundles
from expertmesh_controller.local.openai_line import http_listen
from expertmesh_controller.local.plan import UpRequest
from expertmesh_controller.local.reaching import free_port, is_local_only, reachable_host

TRANSPORTS = ("auto", "grpc", "unix", "tcp")
JOBS = ("on", "off")


@dataclass(frozen=True, slots=True)
class UpFlags:
    """The command line, with its plain defaults filled in."""

    models: tuple[str, ...]
    workers: int
    budget_share: float
    listen: str
    precision: str
    transport: str
    token: str | None
    secure: bool
    tls: Path | None
    cache: Path | None
    logs: Path | None
    controller_options: tuple[str, ...]
    gateways: int = 1
    http_port: str | None = None
    gateway_options: tuple[str, ...] = ()
    jobs: str = "on"
    numerics: str = "exact"
    local_layers: str = ""
    worker_options: tuple[str, ...] = ()


def up_request(flags: UpFlags, runtime_folder: Path) -> UpRequest:
    """Everything that `up` needs to know.

    Whoever listens beyond this machine, or asks for --secure, demands a token, a random one if none is given. Workers
    get one that can only join.

    Raises:
        InvalidInput: a flag is wrong, or there is no bundle.

    """
    _one_of("--precision", flags.precision, PRECISIONS)
    _one_of("--transport", flags.transport, TRANSPORTS)
    _one_of("--jobs", flags.jobs, JOBS)
    _one_of("--numerics", flags.numerics, NUMERICS)
    if not flags.workers and flags.numerics != "fast":
        raise InvalidInput("--workers 0: experts need workers, unless --numerics fast keeps them in the gateway")
    local_layers = _local_layers(flags)
    if not flags.workers and local_layers == NONE:
        raise InvalidInput("--workers 0: --local-layers none leaves every expert to workers; add some, or leave it out")
    listen = _with_port(flags.listen)
    logs = flags.logs or runtime_folder
    logs.mkdir(parents=True, exist_ok=True)
    token = flags.token or (None if is_local_only(listen) and not flags.secure else new_token())
    _known_to_gateways(token, flags.gateways)
    tls = _tls_folder(flags)
    door = http_listen(flags.http_port, flags.listen, token=token, tls=tls)
    gateways = further_listens(listen, flags.gateways, besides=() if door is None else (door,))
    return UpRequest(
        bundles=tuple((name, folder.resolve()) for name, folder in find_bundles(flags.models)),
        workers=flags.workers,
        budget_share=flags.budget_share,
        listen=listen,
        precision=cast("Precision", flags.precision),
        transport=flags.transport,
        token=token,
        join_token=None if token is None else new_token(),
        local_token=None if token is None else new_token(),
        tls=tls,
        http_listen=door,
        cache=(flags.cache or home_folder() / "cache").absolute(),
        runtime_folder=runtime_folder,
        log_folder=logs.absolute(),
        controller_options=(
            "--jobs",
            flags.jobs,
            "--models-folder",
            str((home_folder() / "models").absolute()),
            *flags.controller_options,
        ),
        gateways=gateways,
        gateway_doors=further_doors(door, gateways, listen),
        gateway_options=flags.gateway_options,
        worker_options=flags.worker_options,
        numerics=cast("Numerics", flags.numerics),
        local_layers=local_layers,
    )


def _local_layers(flags: UpFlags) -> str:
    try:
        return checked_ranges(flags.local_layers, flags.numerics)
    except InvalidInput as error:
        raise InvalidInput(f"--local-layers: {error}") from None


def _known_to_gateways(token: str | None, gateways: int) -> None:
    """Further gateways are told digests of tokens with an id; a short chosen one could be found from its digest."""
    if token is not None and gateways > 1 and split_token(token) is None:
        raise InvalidInput("--token with --gateways: it must have the form that `expertmesh tokens new` prints")


def _one_of(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidInput(f"{flag} {value!r}: allowed are {', '.join(allowed)}")


def _with_port(listen: str) -> str:
    if listen.startswith("unix:"):
        return listen
    host, separator, port = listen.rpartition(":")
    if not separator or not port.isdigit():
        raise InvalidInput(f"--listen {listen!r}: expected host:port or unix:path")
    return f"{host}:{free_port(host)}" if port == "0" else listen


def _tls_folder(flags: UpFlags) -> Path | None:
    if flags.tls is not None or not flags.secure:
        return None if flags.tls is None else flags.tls.absolute()
    # Imported here: cryptography costs a tenth of a second that a plain start need not pay.
    from expertmesh_common.certificates import development_ca  # noqa: PLC0415

    folder = home_folder() / "tls"
    hosts = ("localhost", "127.0.0.1", "::1", reachable_host(), socket.gethostname())
    development_ca(folder, tuple(dict.fromkeys(hosts)))
    return folder
