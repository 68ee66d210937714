"""`Operations` over gRPC: what the CLI and the supervisor ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from expertmesh.version import __version__
from expertmesh_api.v1 import operations_pb2, operations_pb2_grpc
from expertmesh_common.errors import DeadlinePassed, NotHere
from expertmesh_common.serving import Context
from expertmesh_controller.control.membership.state import Member
from expertmesh_controller.control.models.operations import ModelOperations
from expertmesh_controller.control.view import View
from expertmesh_controller.control.world import in_flight

WAIT_DEFAULT_S = 60.0
ANSWER_S = 0.2
"""An answer leaves this long before the caller's deadline, so that it arrives."""


class Watched(Protocol):
    """What operations need of the control loop."""

    def view(self) -> View: ...

    async def changed(self) -> None:
        """Wait for the next change of anything in the view."""


class OperationsService(operations_pb2_grpc.OperationsServicer):
    def __init__(self, loop: Watched, models: ModelOperations, wall_s: Callable[[], float] = time.time) -> None:
        self._loop, self._models, self._wall_s = loop, models, wall_s

    async def ListNodes(  # noqa: N802 - the name of the call
        self,
        request: operations_pb2.ListNodesRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> operations_pb2.ListNodesResponse:
        view = self._loop.view()
        nodes = [_node(member, view) for _, member in sorted(view.cluster.members.items())]
        return operations_pb2.ListNodesResponse(
            epoch=view.epoch.to_proto(),
            nodes=nodes,
            server_version=__version__,
            server_time_ms=int(1000 * self._wall_s()),
        )

    async def ListExperts(  # noqa: N802 - the name of the call
        self,
        request: operations_pb2.ListExpertsRequest,
        context: Context,  # noqa: ARG002
    ) -> operations_pb2.ListExpertsResponse:
        view = self._loop.view()
        self._check_model(view, request.model)
        experts = [
            operations_pb2.ExpertPlacement(
                expert=key.to_ref(),
                precision=key.precision,
                resident_bytes=view.catalogue[key].resident_bytes,
                worker_ids=ids,
                rows=view.rows.get((key.model, key.layer, key.index), 0),
            )
            for key, ids in view.holders().items()
            if key in view.catalogue and request.model in ("", key.model)
        ]
        return operations_pb2.ListExpertsResponse(epoch=view.epoch.to_proto(), experts=experts)

    async def WaitReady(  # noqa: N802 - the name of the call
        self, request: operations_pb2.WaitReadyRequest, context: Context
    ) -> operations_pb2.WaitReadyResponse:
        """Ready, or what is missing shortly before the deadline.

        Raises:
            NotHere: no such model is served.
            DeadlinePassed: there is room for everything, but it is not loaded yet.

        """
        self._check_model(self._loop.view(), request.model)
        remaining_s = context.time_remaining()
        wait_s = WAIT_DEFAULT_S if remaining_s is None else max(remaining_s - ANSWER_S, 0.0)
        try:
            async with asyncio.timeout(wait_s):
                await self._ready(request.model)
        except TimeoutError:
            view = self._loop.view()
            if not view.missing_bytes(request.model):
                raise DeadlinePassed(_progress(view, request.model)) from None
        return _readiness(self._loop.view(), request.model)

    async def ListServed(  # noqa: N802 - the name of the call
        self,
        request: operations_pb2.ListServedRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> operations_pb2.ListServedResponse:
        return self._models.list_served(self._loop.view())

    async def ServeModel(  # noqa: N802 - the name of the call
        self,
        request: operations_pb2.ServeModelRequest,
        context: Context,  # noqa: ARG002
    ) -> operations_pb2.ServeModelResponse:
        return await self._models.serve(request, self._loop.view)

    async def UnserveModel(  # noqa: N802 - the name of the call
        self,
        request: operations_pb2.UnserveModelRequest,
        context: Context,  # noqa: ARG002
    ) -> operations_pb2.UnserveModelResponse:
        return await self._models.unserve(request)

    def _check_model(self, view: View, model: str) -> None:
        # Models that gateways hold whole have no experts in the catalogue.
        names = {key.model for key in view.catalogue} | self._models.names
        if model and model not in names:
            raise NotHere(f"model {model!r} is not served here; served: {', '.join(sorted(names)) or 'none'}")

    async def _ready(self, model: str) -> None:
        while not _is_ready(self._loop.view(), model):
            await self._loop.changed()


def _is_ready(view: View, model: str) -> bool:
    # Models that gateways hold whole have no experts to wait for.
    return not _experts(view, model) or (view.at_rest and not view.uncovered(model))


def _progress(view: View, model: str) -> str:
    return (
        f"not ready: {view.uncovered(model)} of {_experts(view, model)} experts have no live instance, "
        f"{len(view.cluster.members)} workers joined, {len(in_flight(view.cluster))} orders are in flight"
    )


def _readiness(view: View, model: str) -> operations_pb2.WaitReadyResponse:
    return operations_pb2.WaitReadyResponse(
        epoch=view.epoch.to_proto(),
        workers=len(view.cluster.members),
        experts=_experts(view, model),
        instances=sum(model in ("", i.model) for i in view.table.instances),
        missing_bytes=view.missing_bytes(model),
    )


def _experts(view: View, model: str) -> int:
    return sum(model in ("", key.model) for key in view.catalogue)


def node_state(member: Member, view: View) -> str:
    """What `ListNodes` says of a member."""
    return _state(member, view, sum(i.worker_id == member.hello.worker_id for i in view.table.instances))


def _node(member: Member, view: View) -> operations_pb2.Node:
    hello, found = member.hello, member.hello.capabilities
    experts = sum(i.worker_id == hello.worker_id for i in view.table.instances)
    return operations_pb2.Node(
        worker_id=hello.worker_id,
        generation=hello.generation,
        state=_state(member, view, experts),
        cores=found.cores,
        memory_bytes=found.memory_bytes,
        budget_bytes=found.budget_bytes,
        resident_bytes=member.resident_bytes,
        experts=experts,
        rows=member.rows,
        speed_rows_per_s=found.speed_rows_per_s,
        gemv_gb_per_s=found.gemv_gb_per_s,
        gemm_gflops=found.gemm_gflops,
        providers=found.providers,
        endpoints=[e.to_proto() for e in hello.endpoints],
        heartbeat_age_ms=int(max(view.now - member.heard_at, 0.0) * 1000),
        version=hello.version,
    )


def _state(member: Member, view: View, experts: int) -> str:
    if member.leaving_since is not None:
        return "leaving"
    if member.hello.worker_id in view.cluster.unreachable:
        return "unreachable"
    if view.now < member.aside_until:
        return "unstable"
    return "live" if experts else "joining"
