"""Serving models on a running mesh, and taking them away: what is sent and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from expertmesh.errors import InvalidRequest
from expertmesh_api.v1 import operations_pb2

ModelState = Literal["loading", "ready", "draining", "failed"]

DRAIN_S = 30.0
"""How long the answers of a model that is taken away may go on, unless the caller says otherwise."""


@dataclass(frozen=True, slots=True)
class SlaTarget:
    """What a model's users are promised; 0 is no target.

    `ttft_p95_ms` is from admission to the first token, `token_p95_ms` between the tokens of an answer, both over
    `window_s` seconds. `max_instances` (copies of each expert) 0 is no limit; `cost_weight` weighs its instances
    against those of other models.
    """

    ttft_p95_ms: float = 0.0
    token_p95_ms: float = 0.0
    window_s: float = 60.0
    min_instances: int = 1
    max_instances: int = 0
    cost_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class TargetState:
    """One target, `name` as in `SlaTarget`, and what became of it: 95th percentiles in milliseconds over its window.

    `seen_ms` is None, and `state` "unseen", while no answer in the window tells.
    """

    name: str
    promised_ms: float
    seen_ms: float | None
    state: Literal["met", "missed", "unseen"]


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model of the mesh and how far it is.

    `state` is "loading" until every expert has a live instance, then "ready"; "draining" while it is taken away;
    "failed" with `error` when a restarted controller could not load it again. `budget_share` bounds its part of all
    workers' budgets; `missing_bytes` are resident bytes of experts for which there is no room (in that share).
    `resident_bytes` belong to `instances` copies of `experts`. `ttft_p95_ms` and `token_p95_ms` were seen over the
    target's window, 0 without answers in it; `targets` judges them, empty where nothing was promised. With `numerics`
    "fast" gateways hold the experts of `local_layers` ("0,3,8-11", "none"; empty: all) themselves, and no worker has
    copies.
    """

    name: str
    path: str
    bundle_digest: str
    precision: str
    state: ModelState
    experts: int
    instances: int
    resident_bytes: int
    missing_bytes: int
    requests: int
    slots: int
    budget_share: float = 1.0
    sla: SlaTarget = field(default_factory=SlaTarget)
    ttft_p95_ms: float = 0.0
    token_p95_ms: float = 0.0
    error: str = ""
    targets: tuple[TargetState, ...] = ()
    numerics: str = "exact"
    local_layers: str = ""


def serve_request(
    path: str | Path,
    *,
    name: str,
    precision: str,
    sla: SlaTarget | None,
    budget_share: float,
    slots: int,
    numerics: str,
    local_layers: str,
) -> operations_pb2.ServeModelRequest:
    """The request of `serve_model`.

    Raises:
        InvalidRequest: a number is negative, or too large for the wire.

    """
    try:
        return operations_pb2.ServeModelRequest(
            path=str(path),
            name=name,
            precision=precision,
            sla=None if sla is None else _sla_message(sla),
            budget_share=budget_share,
            slots=slots,
            numerics=numerics,
            local_layers=local_layers,
        )
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"serve_model: {error}") from error


def unserve_request(name: str, drain_s: float) -> operations_pb2.UnserveModelRequest:
    """The request of `unserve_model`.

    Raises:
        InvalidRequest: `drain_s` is negative or longer than 49 days.

    """
    try:
        return operations_pb2.UnserveModelRequest(name=name, drain_ms=round(1000 * drain_s))
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"drain_s is {drain_s}: expected seconds from 0 to 4e6") from error


def model_statuses(message: operations_pb2.ListServedResponse) -> tuple[ModelStatus, ...]:
    return tuple(model_status(model) for model in message.models)


def model_status(message: operations_pb2.ModelStatus) -> ModelStatus:
    return ModelStatus(
        name=message.name,
        path=message.path,
        bundle_digest=message.bundle_digest,
        precision=message.precision,
        state=_state(message.state),
        experts=message.experts,
        instances=message.instances,
        resident_bytes=message.resident_bytes,
        missing_bytes=message.missing_bytes,
        requests=message.requests,
        slots=message.slots,
        budget_share=message.budget_share,
        sla=_sla(message.sla),
        ttft_p95_ms=message.ttft_p95_ms,
        token_p95_ms=message.token_p95_ms,
        error=message.error,
        targets=_targets(message),
        numerics=message.numerics or "exact",
        local_layers=message.local_layers,
    )


def _targets(message: operations_pb2.ModelStatus) -> tuple[TargetState, ...]:
    pairs = (
        ("ttft_p95_ms", message.sla.ttft_p95_ms, message.ttft_p95_ms),
        ("token_p95_ms", message.sla.token_p95_ms, message.token_p95_ms),
    )
    return tuple(_target(name, promised_ms, seen_ms) for name, promised_ms, seen_ms in pairs if promised_ms)


def _target(name: str, promised_ms: float, seen_ms: float) -> TargetState:
    if not seen_ms:
        return TargetState(name, promised_ms, None, "unseen")
    return TargetState(name, promised_ms, seen_ms, "met" if seen_ms <= promised_ms else "missed")


def _state(name: str) -> ModelState:
    states: dict[str, ModelState] = {"ready": "ready", "draining": "draining", "failed": "failed"}
    return states.get(name, "loading")


def _sla(message: operations_pb2.SlaTarget) -> SlaTarget:
    return SlaTarget(
        message.ttft_p95_ms,
        message.token_p95_ms,
        message.window_s,
        message.min_instances,
        message.max_instances,
        message.cost_weight,
    )


def _sla_message(sla: SlaTarget) -> operations_pb2.SlaTarget:
    return operations_pb2.SlaTarget(
        ttft_p95_ms=sla.ttft_p95_ms,
        token_p95_ms=sla.token_p95_ms,
        window_s=sla.window_s,
        min_instances=sla.min_instances,
        max_instances=sla.max_instances,
        cost_weight=sla.cost_weight,
    )
