"""What a controller and a gateway process show of themselves: their parts' checks and metrics, put together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

from prometheus_client.core import Metric

from expertmesh_api.v1 import gating_pb2, inference_pb2
from expertmesh_common.observability.checks import Check
from expertmesh_common.observability.pulse import stalled
from expertmesh_common.observability.watching import Shown
from expertmesh_controller.control.loop import SERVICES, ControlLoop
from expertmesh_controller.control.observing import control_check, control_metrics
from expertmesh_controller.gateway.hosting import ModelHost
from expertmesh_controller.gateway.observing.metrics import ModelView, of_models, of_requests

__all__ = ["ENGINE_STALL_S", "controller_shows", "gateway_shows"]

ENGINE_STALL_S = 60.0
"""Longer than any hop to a slow board, its retry on a replica, and one chunk through a slow trunk may take together."""

_FILES = (inference_pb2.DESCRIPTOR, gating_pb2.DESCRIPTOR)


def gateway_shows(host: ModelHost, started: asyncio.Event) -> Shown:
    """It lives while its engines turn; it is ready once it listens and every expert of its models is covered."""
    experts = Check("experts", lambda: _uncovered(host))
    doors = (service.full_name for file in _FILES for service in file.services_by_name.values())
    return Shown(
        part="gateway",
        alive=(Check("engines", lambda: _stalled(host)),),
        ready=(Check("started", lambda: None if started.is_set() else "not listening yet"), experts),
        sources=(lambda: of_requests(host.answering.counts), lambda: of_models(_views(host))),
        services=dict.fromkeys(doors, experts.probe),
    )


def controller_shows(loop: ControlLoop, host: ModelHost, started: asyncio.Event) -> Shown:
    """A gateway and a control loop, which serves members and operations whatever models lack."""
    gateway = gateway_shows(host, started)
    return replace(
        gateway,
        part="controller",
        ready=(*gateway.ready, control_check(loop)),
        sources=(*gateway.sources, lambda: _control(loop)),
        services={**gateway.services, **dict.fromkeys(SERVICES, lambda: None)},
    )


def _control(loop: ControlLoop) -> Iterator[Metric]:
    return control_metrics(loop)


def _stalled(host: ModelHost) -> str | None:
    for name, loaded in host.running.items():
        engine = loaded.gateway.engine
        if not engine.alive:
            return f"the engine of model {name} has ended"
        if (told := stalled(engine.pulse, ENGINE_STALL_S, f"the engine of model {name}")()) is not None:
            return told
    return None


def _uncovered(host: ModelHost) -> str | None:
    found = {name: loaded.gateway.uncovered for name, loaded in host.running.items()}
    told = [f"{count} experts of model {name} have no live instance" for name, count in found.items() if count]
    return "; ".join(told) or None


def _views(host: ModelHost) -> list[ModelView]:
    return [
        ModelView(
            name,
            loaded.gateway.engine,
            loaded.gateway.rows(),
            loaded.plane.counters.retried_pairs,
            loaded.pool.totals(),
            loaded.gateway.ready,
        )
        for name, loaded in host.running.items()
    ]
