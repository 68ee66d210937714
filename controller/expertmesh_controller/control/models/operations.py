"""Messages of `Operations` about models, to and from the keeper of models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

from expertmesh_api.v1 import operations_pb2
from expertmesh_common.bundle.manifest import Numerics, Precision
from expertmesh_common.errors import InvalidInput
from expertmesh_controller.cluster.local_layers import ALL
from expertmesh_controller.cluster.models import ModelSpec, SlaTarget
from expertmesh_controller.control.models.keeping import ModelKeeper
from expertmesh_controller.control.models.kept import Kept
from expertmesh_controller.control.view import View

DRAIN_DEFAULT_MS = 30_000


class ModelOperations:
    """ListServed, ServeModel and UnserveModel. Defaults are the controller's."""

    def __init__(
        self,
        keeper: ModelKeeper,
        default_precision: Precision = "fp32",
        default_slots: int = 16,
        default_numerics: Numerics = "exact",
        default_local_layers: str = ALL,
    ) -> None:
        self._keeper = keeper
        self._default_precision: Precision = default_precision
        self._default_numerics: Numerics = default_numerics
        self._default_local_layers = default_local_layers
        self._default_slots = default_slots

    def list_served(self, view: View) -> operations_pb2.ListServedResponse:
        models = [self._status(kept, view) for kept in self._keeper.kept()]
        return operations_pb2.ListServedResponse(epoch=view.epoch.to_proto(), models=models)

    @property
    def names(self) -> frozenset[str]:
        """Models that are served, or answer what they were asked before they go."""
        return frozenset(kept.spec.name for kept in self._keeper.kept() if kept.state in {"serving", "draining"})

    async def serve(
        self, request: operations_pb2.ServeModelRequest, view: Callable[[], View]
    ) -> operations_pb2.ServeModelResponse:
        """See `ModelKeeper.serve`."""
        kept = await self._keeper.serve(self._spec(request))
        return operations_pb2.ServeModelResponse(model=self._status(kept, view()))

    async def unserve(self, request: operations_pb2.UnserveModelRequest) -> operations_pb2.UnserveModelResponse:
        """See `ModelKeeper.unserve`."""
        if not request.name:
            raise InvalidInput("name is missing: say which model to take away")
        drain_ms = request.drain_ms if request.HasField("drain_ms") else DRAIN_DEFAULT_MS
        return operations_pb2.UnserveModelResponse(
            cut_requests=await self._keeper.unserve(request.name, drain_ms / 1000)
        )

    def _spec(self, request: operations_pb2.ServeModelRequest) -> ModelSpec:
        if not request.path:
            raise InvalidInput("path is missing: name the folder of a model bundle on the controller's machine")
        if "\0" in request.path or not Path(request.path).is_absolute():
            raise InvalidInput(f"path {request.path[:200]!r} must be absolute: the controller has its own folder")
        numerics = cast("Numerics", request.numerics or self._default_numerics)
        same = numerics == self._default_numerics
        return ModelSpec(
            request.name,
            Path(request.path),
            cast("Precision", request.precision or self._default_precision),
            request.slots or self._default_slots,
            request.budget_share or 1.0,
            _sla(request.sla) if request.HasField("sla") else SlaTarget(),
            numerics,
            request.local_layers or (self._default_local_layers if same else ALL),
        )

    def _status(self, kept: Kept, view: View) -> operations_pb2.ModelStatus:
        name, spec = kept.spec.name, kept.spec
        seen = self._keeper.seen(name)
        routed = [i for i in view.table.instances if i.model == name]
        sizes = {(k.layer, k.index): e.resident_bytes for k, e in view.catalogue.items() if k.model == name}
        whole = spec.numerics == "fast" and spec.local_layers == ALL
        covered = whole or (bool(sizes) and not view.uncovered(name))
        return operations_pb2.ModelStatus(
            name=name,
            path=str(spec.path),
            bundle_digest=kept.digest,
            precision=spec.precision,
            sla=_sla_message(spec.sla),
            budget_share=spec.budget_share,
            experts=kept.experts,
            instances=len(routed),
            resident_bytes=sum(sizes.get(i.at, 0) for i in routed),
            missing_bytes=view.missing_bytes(name),
            state="ready" if kept.state == "serving" and covered else _STATES[kept.state],
            requests=self._keeper.under_way(name),
            ttft_p95_ms=seen.ttft_p95_ms,
            token_p95_ms=seen.token_p95_ms,
            error=kept.error,
            slots=spec.slots,
            numerics=spec.numerics,
            local_layers=spec.local_layers,
        )


_STATES = {"opening": "loading", "serving": "loading", "draining": "draining", "failed": "failed"}


def _sla(message: operations_pb2.SlaTarget) -> SlaTarget:
    return SlaTarget(
        message.ttft_p95_ms,
        message.token_p95_ms,
        message.window_s or SlaTarget().window_s,
        message.min_instances,
        message.max_instances,
        message.cost_weight or SlaTarget().cost_weight,
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
