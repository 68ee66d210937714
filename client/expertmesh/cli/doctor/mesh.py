"""Whether the mesh answers, the token is right, clocks agree, workers live, and every expert is served."""

from __future__ import annotations

import time
from collections.abc import Iterator

from expertmesh.cli.connecting import connect
from expertmesh.cli.doctor.findings import Asked, Finding, Level
from expertmesh.cli.output import counted, megabytes
from expertmesh.cli.overview import LIVE, Seen
from expertmesh.client import Client
from expertmesh.errors import ExpertmeshError, PermissionDenied, Unauthenticated, Unavailable
from expertmesh.inspecting import MeshFacts
from expertmesh.types import Node
from expertmesh.version import __version__

AREA = "mesh"
ASK_S = 5.0
ANSWER_S = 20.0
LATE_HEARTBEAT_MS = 3000
SKEW_S, TOO_MUCH_SKEW_S = 2.0, 60.0


def check(asked: Asked) -> Iterator[Finding]:
    """From the connection to one real token; ends at the first thing that keeps the rest from being asked."""
    try:
        with connect(asked.server, asked.token, asked.tls, deadline_s=ASK_S) as client:
            yield from _look(asked, client)
    except ExpertmeshError as error:
        yield _refused(asked, error)


def _look(asked: Asked, client: Client) -> Iterator[Finding]:
    asked_at = time.time()
    facts = client.mesh()
    answered_at = time.time()
    yield Finding(AREA, "reach", "ok", f"{asked.server} answers after {1000 * (answered_at - asked_at):.0f} ms")
    yield _version(facts)
    yield from clock(facts, asked_at, answered_at)
    seen = Seen(facts, client.models(), client.nodes(), client.experts())
    yield from judged(seen)
    lacking = {e.model for e in seen.experts if not e.worker_ids}
    for model in seen.models:
        if model.name not in lacking:  # it would wait for them until its deadline
            yield _answers(client, model.name)


def _refused(asked: Asked, error: ExpertmeshError) -> Finding:
    says = " ".join(str(error).split())
    if isinstance(error, Unauthenticated):
        return Finding(AREA, "token", "fail", says, "pass the right one with --token or EXPERTMESH_TOKEN")
    if isinstance(error, PermissionDenied):
        return Finding(AREA, "token", "fail", says, "ask for a token that may look at the mesh (scope operate)")
    if isinstance(error, Unavailable):
        level: Level = "fail" if asked.chosen else "warn"
        advice = "check --server, the firewall, and --tls" if asked.chosen else "start one: expertmesh up"
        return Finding(AREA, "reach", level, says, advice)
    return Finding(AREA, "reach", "fail", says, "see the log of the controller")


def _version(facts: MeshFacts) -> Finding:
    same = facts.version.split(".")[:2] == __version__.split(".")[:2]
    says = f"the mesh has {facts.version or 'an unknown version'}, this program {__version__}"
    return Finding(AREA, "version", "ok" if same else "warn", says, "" if same else "install the same on both sides")


def clock(facts: MeshFacts, asked_at: float, answered_at: float) -> Iterator[Finding]:
    """How far the clocks are apart; the way there and back is no difference. Times are Unix seconds."""
    if facts.time_ms is None:
        return
    theirs = facts.time_ms / 1000
    off_s = max(asked_at - theirs, theirs - answered_at, 0.0)
    level: Level = "fail" if off_s > TOO_MUCH_SKEW_S else "warn" if off_s > SKEW_S else "ok"
    advice = "" if level == "ok" else "certificates and journals need right clocks: run an NTP client on both machines"
    yield Finding(AREA, "clock", level, f"{off_s:.1f} s apart", advice)


def judged(seen: Seen) -> Iterator[Finding]:
    """Lines about workers and experts."""
    if not seen.nodes and (seen.experts or not seen.models):
        yield Finding(AREA, "workers", "fail", "none has joined", "expertmesh worker --join HOST:PORT --token ...")
    for node in seen.nodes:
        yield _worker(node, seen.facts.version)
    for model in seen.models:
        mine = [e for e in seen.experts if e.model == model.name]
        if not mine:
            yield Finding(AREA, "experts", "ok", f"{model.name} is held whole by its gateways")
            continue
        without = [e for e in mine if not e.worker_ids]
        missing = len(without)
        says = f"{len(mine) - missing} of {counted(len(mine), 'expert')} of {model.name} are served"
        if without:
            says += f", {megabytes(sum(e.resident_bytes for e in without))} MB are on no worker"
        advice = "add a worker, or raise --budget; `expertmesh status` says what lacks" if missing else ""
        yield Finding(AREA, "experts", "fail" if missing else "ok", says, advice)


def _worker(node: Node, mesh_version: str) -> Finding:
    name = f"worker {node.worker_id}"
    says = f"{node.state}, {counted(node.experts, 'expert')}, computes on {', '.join(node.providers) or 'unknown'}"
    if node.state != LIVE:
        return Finding(AREA, name, "warn", says, f"see the log of {node.worker_id}")
    if node.heartbeat_age_ms > LATE_HEARTBEAT_MS:
        late = f"{says}, but silent for {node.heartbeat_age_ms / 1000:.1f} s"
        return Finding(AREA, name, "warn", late, "is its machine or network overloaded?")
    if node.version and node.version != mesh_version:
        return Finding(AREA, name, "warn", f"{says}, version {node.version}", f"install {mesh_version} there")
    return Finding(AREA, name, "ok", says)


def _answers(client: Client, model: str) -> Finding:
    try:
        answer = client.complete("Hello", model=model, max_tokens=1, ignore_eos=True, deadline_s=ANSWER_S)
    except ExpertmeshError as error:
        return Finding(AREA, f"answer of {model}", "fail", " ".join(str(error).split()), "see `expertmesh status`")
    return Finding(AREA, f"answer of {model}", "ok", f"a token after {answer.ttft_ms:.0f} ms")
