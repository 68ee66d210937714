"""What `expertmesh up` will start: decided before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from expertmesh_common.bundle.manifest import Manifest, Numerics, Precision
from expertmesh_common.errors import InvalidInput
from expertmesh_controller.cluster.local_layers import ALL, held_layers
from expertmesh_controller.local.children import ChildSpec
from expertmesh_controller.local.gateways import dialled, gateway_arguments
from expertmesh_controller.local.local_model import LocalModel, model_arguments
from expertmesh_controller.local.reaching import is_local_only, reachable_host

MB = 1e6
_SECRETS = ("EXPERTMESH_TOKEN", "EXPERTMESH_JOIN_TOKEN")


@dataclass(frozen=True, slots=True)
class UpRequest:
    """What a person asked for.

    `bundles` are names ("" for the bundle's own) and folders, `listen` is `host:port` or `unix:path`, `budget_share` is
    of the bytes of one copy of every expert.
    """

    bundles: tuple[tuple[str, Path], ...]
    workers: int
    budget_share: float
    listen: str
    precision: Precision
    transport: str
    token: str | None
    tls: Path | None
    cache: Path
    runtime_folder: Path
    log_folder: Path
    controller_options: tuple[str, ...] = ()
    join_token: str | None = None
    """What the printed line carries; the processes here have one of their own, so that this one can be revoked."""
    local_token: str | None = None
    gateways: tuple[str, ...] = ()
    """Where further gateways listen, besides the controller's own."""
    gateway_options: tuple[str, ...] = ()
    worker_options: tuple[str, ...] = ()
    http_listen: str | None = None
    """Where the controller's OpenAI door listens; None for no door."""
    gateway_doors: tuple[str | None, ...] = ()
    """Where those of the further gateways listen, one for each."""
    numerics: Numerics = "exact"
    local_layers: str = ALL

    @property
    def dial_address(self) -> str:
        """Where this machine's own processes reach the controller."""
        return dialled(self.listen)

    @property
    def dial_addresses(self) -> tuple[str, ...]:
        """Where this machine's own clients reach the gateways, the controller's first."""
        return tuple(dialled(listen) for listen in (self.listen, *self.gateways))

    @property
    def openai_base_urls(self) -> tuple[str, ...]:
        """For OpenAI clients of this machine, the controller's first; none without doors."""
        scheme = "http" if self.tls is None else "https"
        doors = (self.http_listen, *self.gateway_doors)
        return tuple(f"{scheme}://{dialled(door)}/v1" for door in doors if door is not None)


def budget_bytes(models: Sequence[LocalModel], request: UpRequest) -> int:
    """Each worker's budget: its share of one copy of every expert of every model that no gateway holds itself.

    Where gateways hold all of them, workers are for models that come later: shares are of every expert then.

    Raises:
        InvalidInput: all budgets together do not hold one copy of every expert, or a model has no such local layers.

    """
    every = sum(model.manifest.expert_bytes(request.precision) for model in models)
    all_bytes = sum(_worker_bytes(model.manifest, request) for model in models)
    if not all_bytes:
        return math.ceil(every * request.budget_share)
    if request.workers * request.budget_share < 1:
        share = request.workers * request.budget_share
        raise InvalidInput(
            f"{request.workers} worker{'s hold' if request.workers > 1 else ' holds'} {share:.0%} of the experts with "
            f"--budget-share {request.budget_share:g}, "
            f"{all_bytes * (1 - share) / MB:.1f} of {all_bytes / MB:.1f} MB are missing: raise --workers or "
            "--budget-share"
        )
    return math.ceil(all_bytes * request.budget_share)


def _worker_bytes(manifest: Manifest, request: UpRequest) -> int:
    held = held_layers(manifest, request.numerics, request.local_layers)
    layers = [layer for layer in manifest.layers if layer.index not in held]
    return sum(e.blobs[request.precision].resident_bytes for layer in layers for e in layer.experts)


def controller_spec(request: UpRequest, environment: Mapping[str, str]) -> ChildSpec:
    """The controller's command. Tokens go through the environment: anybody can read arguments."""
    arguments = (
        "controller", *model_arguments(request.bundles), "--listen", request.listen,
        "--http-listen", request.http_listen or "off",
        "--precision", request.precision, "--transport", request.transport,
        "--expected-workers", str(request.workers), *_tls(request),
        "--data", str(request.runtime_folder / "store"), *request.controller_options,
    )  # fmt: skip
    joining = ",".join(token for token in (request.join_token, request.local_token) if token is not None)
    secrets = {"EXPERTMESH_TOKEN": request.token, "EXPERTMESH_JOIN_TOKEN": joining or None}
    surroundings = _environment(request, environment, secrets)
    return ChildSpec("controller", arguments, surroundings, request.log_folder / "controller.log")


def worker_specs(request: UpRequest, budget: int, environment: Mapping[str, str]) -> tuple[ChildSpec, ...]:
    """The workers' commands, worker-1 to worker-n."""
    names = [f"worker-{number}" for number in range(1, request.workers + 1)]
    return tuple(
        ChildSpec(
            name,
            (
                "worker", "--join", request.dial_address, "--id", name, "--budget", str(budget),
                "--cache", str(request.cache), *_doors(request), *_tls(request), *request.worker_options,
            ),
            _environment(request, environment, {"EXPERTMESH_TOKEN": request.local_token}),
            request.log_folder / f"{name}.log",
        )
        for name in names
    )  # fmt: skip


def gateway_specs(request: UpRequest, environment: Mapping[str, str]) -> tuple[ChildSpec, ...]:
    """The commands of the further gateways, gateway-2 to gateway-n."""
    return tuple(
        ChildSpec(
            f"gateway-{number}",
            (
                *gateway_arguments(number, listen, door, request.dial_address, request.bundles),
                "--transport", request.transport, *_tls(request), *request.gateway_options,
            ),
            _environment(request, environment, {"EXPERTMESH_TOKEN": request.local_token}),
            request.log_folder / f"gateway-{number}.log",
        )
        for number, (listen, door) in enumerate(zip(request.gateways, request.gateway_doors, strict=True), start=2)
    )  # fmt: skip


def _doors(request: UpRequest) -> tuple[str, ...]:
    """Where workers listen: as open as the controller, because workers of other machines fetch blobs from them."""
    if is_local_only(request.listen):
        return ("--listen", "127.0.0.1:0")
    return ("--listen", "0.0.0.0:0", "--advertise", reachable_host())


def _tls(request: UpRequest) -> tuple[str, ...]:
    return () if request.tls is None else ("--tls", str(request.tls))


def _environment(request: UpRequest, base: Mapping[str, str], secrets: Mapping[str, str | None]) -> dict[str, str]:
    """The surroundings with these secrets and no others."""
    kept = {name: value for name, value in base.items() if name not in _SECRETS}
    given = {name: value for name, value in secrets.items() if value is not None}
    return {**kept, "TMPDIR": str(request.runtime_folder), "PYTHONUNBUFFERED": "1", **given}
