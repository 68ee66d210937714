"""What `expertmesh status` says: the state of a mesh in one value, and what keeps it from being whole. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from expertmesh.cli.output import counted, megabytes
from expertmesh.cli.targets import target_lines
from expertmesh.inspecting import MeshFacts
from expertmesh.operating import ModelStatus, TargetState
from expertmesh.types import ExpertPlacement, Node, ServedModel

LIVE = "live"


@dataclass(frozen=True, slots=True)
class ModelState:
    """A served model. `copies` counts instances, `missing_experts` those that no worker serves.

    `targets` are what was promised and what was seen, `target_lines` the same in words.
    """

    name: str
    precision: str
    context_tokens: int
    ready: bool
    experts: int
    copies: int
    missing_experts: int
    targets: tuple[TargetState, ...] = ()
    target_lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerState:
    worker_id: str
    state: str
    experts: int
    resident_bytes: int
    budget_bytes: int
    rows: int


@dataclass(frozen=True, slots=True)
class Overview:
    """The mesh at one address. `missing` says in sentences what it lacks; empty when `ready`."""

    address: str
    version: str
    epoch: tuple[int, int]
    ready: bool
    models: tuple[ModelState, ...]
    workers: tuple[WorkerState, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """The answers an overview is made of."""

    facts: MeshFacts
    models: tuple[ServedModel, ...]
    nodes: tuple[Node, ...]
    experts: tuple[ExpertPlacement, ...]
    served: tuple[ModelStatus, ...] = ()


def overview(address: str, seen: Seen) -> Overview:
    """Everything, judged."""
    models = tuple(_model(model, seen) for model in seen.models)
    missing = (*_missing_models(models), *_missing_room(seen), *_missing_workers(seen.nodes))
    return Overview(
        address=address,
        version=seen.facts.version,
        epoch=seen.facts.epoch,
        ready=not missing,
        models=models,
        workers=tuple(_worker(node) for node in seen.nodes),
        missing=missing,
    )


def _model(model: ServedModel, seen: Seen) -> ModelState:
    mine = [e for e in seen.experts if e.model == model.name]
    status = next((status for status in seen.served if status.name == model.name), None)
    return ModelState(
        name=model.name,
        precision=model.precision,
        context_tokens=model.context_tokens,
        ready=model.ready,
        experts=len(mine),
        copies=sum(len(e.worker_ids) for e in mine),
        missing_experts=sum(not e.worker_ids for e in mine),
        targets=() if status is None else status.targets,
        target_lines=() if status is None else target_lines(status),
    )


def _worker(node: Node) -> WorkerState:
    return WorkerState(
        node.worker_id, node.state, node.experts, node.resident_bytes, node.budget_bytes, node.rows
    )  # fmt: skip


def _missing_models(models: Sequence[ModelState]) -> Iterator[str]:
    if not models:
        yield "no model is served: `expertmesh models serve NAME PATH`"
    for model in models:
        if model.missing_experts:
            yield f"{model.name}: {model.missing_experts} of {model.experts} experts are on no worker"
        elif not model.ready:
            yield f"{model.name}: the gateway has not heard of all its experts yet"


def _missing_room(seen: Seen) -> Iterator[str]:
    if seen.models and not seen.experts:
        return  # gateways hold every model whole
    if not seen.nodes:
        yield "no worker has joined: `expertmesh worker --join HOST:PORT --token ...` on any machine"
        return
    need = sum(e.resident_bytes for e in seen.experts)
    room = sum(node.budget_bytes for node in seen.nodes)
    if need > room and not all(e.worker_ids for e in seen.experts):
        lack = megabytes(need - room)
        yield f"{counted(len(seen.nodes), 'worker')} lack {lack} MB for all experts: add one, or raise --budget"


def _missing_workers(nodes: Sequence[Node]) -> Iterator[str]:
    for node in nodes:
        if node.state != LIVE:
            yield f"worker {node.worker_id} is {node.state}"
