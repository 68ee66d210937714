"""What a worker tells of itself: to the control loop when it joins and beats, to anyone who asks for statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expertmesh_api.v1 import common_pb2, experts_pb2, membership_pb2
from expertmesh_worker.runtime.executing import Runtime
from expertmesh_worker.runtime.residents import ExpertName, Resident, Residents


@dataclass(frozen=True, slots=True)
class Reporter:
    """Facts that stay, and the residents and runtime that change."""

    worker_id: str
    generation: str
    version: str
    host_id: str
    capabilities: membership_pb2.Capabilities
    residents: Residents
    runtime: Runtime

    def hello(self, endpoints: Sequence[common_pb2.Endpoint]) -> membership_pb2.Hello:
        return membership_pb2.Hello(
            worker_id=self.worker_id,
            generation=self.generation,
            version=self.version,
            host_id=self.host_id,
            capabilities=self.capabilities,
            endpoints=endpoints,
            resident=[_resident(held) for held in self.residents],
        )

    def heartbeat(self, n: int) -> membership_pb2.Heartbeat:
        work = self.runtime.work
        return membership_pb2.Heartbeat(
            n=n,
            resident_bytes=self.residents.used_bytes,
            rows=work.rows,
            frames=work.frames,
            queued_frames=work.queued_frames,
        )

    def stat(self) -> experts_pb2.StatResponse:
        experts = [
            experts_pb2.ExpertStat(
                expert=_ref(held.name),
                precision=held.precision,
                resident_bytes=held.bytes,
                rows=held.instance.rows,
            )
            for held in self.residents
        ]
        return experts_pb2.StatResponse(
            worker_id=self.worker_id,
            generation=self.generation,
            budget_bytes=self.residents.budget_bytes,
            resident_bytes=self.residents.used_bytes,
            rows=self.runtime.work.rows,
            experts=experts,
        )


def _resident(held: Resident) -> membership_pb2.ResidentExpert:
    digests = {"fast_digest" if held.numerics == "fast" else "digest": held.digest}
    return membership_pb2.ResidentExpert(
        expert=_ref(held.name), precision=held.precision, resident_bytes=held.bytes, **digests
    )


def _ref(name: ExpertName) -> common_pb2.ExpertRef:
    return common_pb2.ExpertRef(model=name.model, layer=name.layer, index=name.index)
