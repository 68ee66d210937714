"""What `expertmesh up` will start: decided before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from expertmesh_common.bundle.manifest import MANIFEST_NAME, Manifest, Precision
from expertmesh_common.errors import InvalidInput
from expertmesh_controller.local.children import ChildSpec
from expertmesh_controller.local.reaching import is_local_only, reachable_host

DEMO_BUNDLE = Path("build/demo-bundle")


@dataclass(frozen=True, slots=True)
class UpRequest:
    """What a person asked for. `listen` is `host:port` or `unix:path`; `budget_share` of the unique expert bytes."""

    bundle: Path
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

    @property
    def dial_address(self) -> str:
        """Where this machine's own processes reach the controller."""
        if is_local_only(self.listen):
            return self.listen
        return f"127.0.0.1:{self.listen.rpartition(':')[2]}"


def find_bundle(asked: Path | None) -> Path:
    """The bundle to serve.

    Raises:
        InvalidInput: none was named and the demo's has not been made.

    """
    if asked is not None:
        return asked
    if (DEMO_BUNDLE / MANIFEST_NAME).is_file():
        return DEMO_BUNDLE
    raise InvalidInput(
        f"no --model was given and there is no {DEMO_BUNDLE}: `expertmesh demo` makes it, "
        "`expertmesh model convert` makes one from your model"
    )


def check_precision(manifest: Manifest, precision: Precision) -> None:
    if precision not in manifest.precisions:
        allowed = ", ".join(manifest.precisions)
        raise InvalidInput(f"model {manifest.name} has no precision {precision}; allowed are {allowed}")


def budget_bytes(manifest: Manifest, request: UpRequest) -> int:
    """Each worker's budget: its share of one copy of every expert.

    Raises:
        InvalidInput: all budgets together do not hold one copy of every expert.

    """
    if request.workers * request.budget_share < 1:
        raise InvalidInput(
            f"{request.workers} workers with --budget-share {request.budget_share:g} hold "
            f"{request.workers * request.budget_share:.0%} of the experts: raise --workers or --budget-share"
        )
    return math.ceil(manifest.expert_bytes(request.precision) * request.budget_share)


def controller_spec(request: UpRequest, environment: Mapping[str, str]) -> ChildSpec:
    """The controller's command. The token goes through the environment: anybody can read arguments."""
    arguments = (
        "controller", "--model", str(request.bundle), "--listen", request.listen,
        "--precision", request.precision, "--transport", request.transport,
        "--expected-workers", str(request.workers), *_tls(request),
        "--data", str(request.runtime_folder / "store"), *request.controller_options,
    )  # fmt: skip
    return ChildSpec("controller", arguments, _environment(request, environment), request.log_folder / "controller.log")


def worker_specs(request: UpRequest, budget: int, environment: Mapping[str, str]) -> tuple[ChildSpec, ...]:
    """The workers' commands, worker-1 to worker-n."""
    names = [f"worker-{number}" for number in range(1, request.workers + 1)]
    return tuple(
        ChildSpec(
            name,
            (
                "worker", "--join", request.dial_address, "--id", name, "--budget", str(budget),
                "--cache", str(request.cache), *_doors(request), *_tls(request),
            ),
            _environment(request, environment),
            request.log_folder / f"{name}.log",
        )
        for name in names
    )  # fmt: skip


def _doors(request: UpRequest) -> tuple[str, ...]:
    """Where workers listen: as open as the controller, because workers of other machines fetch blobs from them."""
    if is_local_only(request.listen):
        return ("--listen", "127.0.0.1:0")
    return ("--listen", "0.0.0.0:0", "--advertise", reachable_host())


def _tls(request: UpRequest) -> tuple[str, ...]:
    return () if request.tls is None else ("--tls", str(request.tls))


def _environment(request: UpRequest, base: Mapping[str, str]) -> dict[str, str]:
    environment = {**base, "TMPDIR": str(request.runtime_folder), "PYTHONUNBUFFERED": "1"}
    environment.pop("EXPERTMESH_TOKEN", None)
    if request.token is not None:
        environment["EXPERTMESH_TOKEN"] = request.token
    return environment
