"""From what membership knows to what placement, reconcile, gateways and workers are told. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from expertmesh_api.v1 import common_pb2, membership_pb2
from expertmesh_controller.cluster.routes import EndpointAddress, Epoch, InstanceRoute, Lack, RouteTable, WorkerRoute
from expertmesh_controller.control.catalogue import Catalogue, CatalogueEntry, ExpertKey
from expertmesh_controller.control.membership.hello import Resident
from expertmesh_controller.control.membership.state import Cluster, Member, SentOrder, WorkerExpert
from expertmesh_controller.control.placement.types import ExpertNeed, WorkerRoom
from expertmesh_controller.control.reconcile.types import Holding, InFlight, LoadExpert, Observed, UnloadExpert

ORIGIN = EndpointAddress("grpc", "")
"""An empty address: the controller that the worker joined."""


def needs_of(catalogue: Catalogue) -> list[ExpertNeed]:
    return [ExpertNeed(e.key, e.resident_bytes, e.frequency) for e in catalogue.values()]


def wanted_here(member: Member, catalogue: Catalogue) -> frozenset[ExpertKey]:
    """What the member holds of what is served: the same expert from the same bytes, and no less exact than asked."""
    return frozenset(k for k, r in member.resident.items() if k in catalogue and _serves(r, catalogue[k]))


def _serves(resident: Resident, entry: CatalogueEntry) -> bool:
    """Numerics `fast` allow what an exact instance computes; `exact` allows nothing else."""
    return resident.digest == entry.digest and resident.numerics in {"exact", entry.numerics}


def rooms_of(cluster: Cluster, catalogue: Catalogue, now: float) -> list[WorkerRoom]:
    """The workers that experts can be put on; what is being loaded counts as loaded."""
    aside = cluster.aside(now)
    loading: dict[str, set[ExpertKey]] = {}
    for order in cluster.orders.values():
        if order.kind == "load" and not order.overdue and order.key in catalogue:
            loading.setdefault(order.worker_id, set()).add(order.key)
    return [
        WorkerRoom(
            worker_id,
            member.hello.capabilities.budget_bytes,
            member.hello.capabilities.speed_rows_per_s,
            wanted_here(member, catalogue) | loading.get(worker_id, set()),
            frozenset(k for (w, k), f in cluster.failures.items() if w == worker_id and f.not_before > now),
        )
        for worker_id, member in sorted(cluster.members.items())
        if member.leaving_since is None and worker_id not in aside
    ]


def planning_inputs(rooms: Iterable[WorkerRoom], cluster: Cluster) -> tuple[object, ...]:
    """What a plan depends on besides what is loaded: planning again is in vain until this changes."""
    return tuple(
        (r.worker_id, cluster.members[r.worker_id].connection, r.budget_bytes, r.speed_rows_per_s, r.refused)
        for r in rooms
    )


def in_flight(cluster: Cluster) -> InFlight:
    return frozenset((o.kind, o.worker_id, o.key) for o in cluster.orders.values() if not o.overdue)


def observe(
    cluster: Cluster,
    catalogue: Catalogue,
    routed: frozenset[WorkerExpert],
    draining: Mapping[WorkerExpert, float | None],
    now: float,
    *,
    loads_per_worker: int,
    probation_s: float,
) -> Observed:
    """The world as reconcile sees it."""
    holdings, suspects, aside = {}, cluster.suspects, cluster.aside(now)
    for worker_id, member in cluster.members.items():
        resident = wanted_here(member, catalogue)
        holdings[worker_id] = Holding(
            resident,
            member.hello.capabilities.budget_bytes - member.resident_bytes,
            frozenset(member.resident) - resident,
            member.leaving_since is not None,
            doubted=worker_id in suspects or now - member.joined_at < probation_s,
            aside=worker_id in aside,
        )
    return Observed(
        now,
        holdings,
        routed,
        {k: e.resident_bytes for k, e in catalogue.items()},
        draining,
        {place: f.not_before for place, f in cluster.failures.items()},
        loads_per_worker,
    )


def lacks_of(missing: Iterable[ExpertKey], catalogue: Catalogue) -> tuple[Lack, ...]:
    """What a plan found no room for, by model."""
    found: dict[str, int] = {}
    for key in missing:
        if key in catalogue:
            found[key.model] = found.get(key.model, 0) + catalogue[key].resident_bytes
    return tuple(Lack(model, size) for model, size in sorted(found.items()))


def table_of(
    epoch: Epoch,
    cluster: Cluster,
    routed: Iterable[WorkerExpert],
    incarnation: str,
    lacks: tuple[Lack, ...] = (),
) -> RouteTable:
    """The route table: every live worker, and the routed instances on them."""
    members = sorted(cluster.members.items())
    workers = tuple(
        WorkerRoute(
            worker_id,
            m.hello.generation,
            m.hello.endpoints,
            m.hello.host_id,
            m.hello.capabilities.speed_rows_per_s,
        )
        for worker_id, m in members
    )
    instances = sorted(
        InstanceRoute(k.model, k.layer, k.index, w, k.precision, _numerics(cluster.members[w], k))
        for w, k in routed
        if w in cluster.members
    )
    return RouteTable(epoch, workers, tuple(instances), incarnation, lacks)


def _numerics(member: Member, key: ExpertKey) -> str:
    resident = member.resident.get(key)
    return "exact" if resident is None else resident.numerics


def sources_of(entry: CatalogueEntry, worker_id: str, cluster: Cluster) -> list[common_pb2.Endpoint]:
    """Blob services that hold an expert's bytes: peers in turn, then the origin."""
    peers = []
    for peer_id, member in sorted(cluster.members.items()):
        holds = any(r.digest == entry.digest for r in member.resident.values())
        address = next((e for e in member.hello.endpoints if e.transport == "grpc"), None)
        if peer_id != worker_id and holds and address is not None:
            peers.append(address)
    turn = (entry.key.layer + entry.key.index) % len(peers) if peers else 0
    return [address.to_proto() for address in (*peers[turn:], *peers[:turn], ORIGIN)]


def order_of(
    step: LoadExpert | UnloadExpert, catalogue: Catalogue, cluster: Cluster, now: float
) -> tuple[SentOrder, membership_pb2.Order]:
    """What to remember and what to send for a step."""
    if isinstance(step, LoadExpert):
        entry = catalogue[step.key]
        resident = Resident(entry.digest, entry.resident_bytes, entry.numerics)
        load = membership_pb2.Load(spec=entry.to_spec(), sources=sources_of(entry, step.worker_id, cluster))
        return SentOrder(step.worker_id, "load", step.key, resident, now), membership_pb2.Order(load=load)
    resident = cluster.members[step.worker_id].resident[step.key]
    unload = membership_pb2.Unload(expert=step.key.to_ref(), precision=step.key.precision)
    return SentOrder(step.worker_id, "unload", step.key, resident, now), membership_pb2.Order(unload=unload)
