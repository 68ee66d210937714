"""Greedy decoding of one request: this project in one process against a bare loop over one fused graph of the bundle.

Bar: at least 0.55 x the loop's tokens/s, at equal threads. `engine` is the whole serving path below gRPC (scheduler,
trunk segments, gate, dispatch, one session per expert, sampler) in one process, with every expert local. Both arms
generate the same number of tokens after the same prompt, in turn; ratios are taken per round.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from pathlib import Path

import psutil
from fused import Loop, build_fused
from interleaving import RESULTS, publish
from resident_bundle import resident

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.parts import Numerics
from expertmesh_common.clock import SystemClock
from expertmesh_common.huge_pages import collapse
from expertmesh_common.running import tuned_runner
from expertmesh_controller.cluster.routes import Epoch, InstanceRoute, RouteTable, WorkerRoute
from expertmesh_controller.gateway.batching.engine import Engine
from expertmesh_controller.gateway.batching.forward import Forward
from expertmesh_controller.gateway.batching.jobs import Ended, Failed, Picked, Request
from expertmesh_controller.gateway.dispatch.links.opening import Caller
from expertmesh_controller.gateway.dispatch.links.pool import LinkPool
from expertmesh_controller.gateway.dispatch.plane import ExpertPlane
from expertmesh_controller.gateway.gating.gate import load_gates
from expertmesh_controller.gateway.text.codec import TextCodec
from expertmesh_controller.gateway.trunk.local import LocalTrunk
from expertmesh_worker.runtime.executing import Runtime
from expertmesh_worker.runtime.lanes import Lanes

PROMPT = "The history of the city begins long before the first stone of its walls was laid. "
BAR, FAST_BAR = 0.55, 0.95


def all_local(bundle: Bundle, precision: str, numerics: Numerics = "exact") -> ExpertPlane:
    """An expert plane whose experts are all loaded in this process."""
    manifest = bundle.manifest
    lanes = Lanes(1)
    residents = resident(bundle, precision, lanes, numerics)
    instances = tuple(
        InstanceRoute(manifest.name, layer.index, expert.index, "local", precision)
        for layer in manifest.layers
        for expert in layer.experts
    )
    pool = LinkPool(Caller("bench"), {"local": Runtime(residents, lanes)})
    plane = ExpertPlane(manifest.name, manifest.layers, load_gates(bundle), pool)
    worker = WorkerRoute("local", "g", (), "", 1.0)
    plane.update(RouteTable(Epoch(1, 1), (worker,), instances))
    return plane


def make_engine(
    bundle: Bundle, precision: str, plane: ExpertPlane, threads: int, *, slots: int = 4, context_tokens: int = 1024
) -> Engine:
    trunk = LocalTrunk(bundle, precision, slots=slots, context_tokens=context_tokens, chunk_tokens=256, threads=threads)
    clock = SystemClock()
    return Engine(trunk, Forward(trunk, plane, bundle.manifest.layers, 10.0), clock, slots)


def make_fast_engine(
    bundle: Bundle, precision: str, threads: int, *, slots: int = 4, context_tokens: int = 1024
) -> Engine:
    """The engine over one graph, as `numerics: fast` serves it."""
    trunk = LocalTrunk(
        bundle, precision, stops=(), slots=slots, context_tokens=context_tokens, chunk_tokens=256, threads=threads
    )
    manifest = bundle.manifest
    nobody = ExpertPlane(manifest.name, manifest.layers, load_gates(bundle), LinkPool(Caller("bench")))
    return Engine(trunk, Forward(trunk, nobody, manifest.layers, 10.0), SystemClock(), slots)


async def engine_turn(engine: Engine, ids: list[int], count: int) -> tuple[float, list[int]]:
    """(tokens/s after the first token, the tokens)."""
    ticket = engine.submit(Request(tuple(ids), count, time.monotonic() + 600))
    tokens: list[int] = []
    while not isinstance(event := await ticket.events.get(), Ended):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Picked):
            tokens.append(event.choice.token_id)
    facts = ticket.facts
    return (count - 1) / (facts.last_token - facts.first_token), tokens


def loop_turn(loop: Loop, ids: list[int], count: int) -> tuple[float, list[int]]:
    tokens = [loop.prefill(ids)]
    start = time.perf_counter()
    while len(tokens) < count:
        tokens.append(loop.step(tokens[-1]))
    return (count - 1) / (time.perf_counter() - start), tokens


async def compare(bundle: Bundle, precision: str, options: argparse.Namespace) -> dict[str, object]:
    loop = Loop(build_fused(bundle, precision, RESULTS / "fused", options.threads))
    plane = all_local(bundle, precision)
    engine = make_engine(bundle, precision, plane, options.threads)
    engines = {"exact": engine, "fast": make_fast_engine(bundle, precision, options.threads)}
    ids = TextCodec(bundle).encode(PROMPT)
    loop_turn(loop, ids, 8)
    for one in engines.values():
        one.start()
        await engine_turn(one, ids, 8)
    collapse()  # the loop's weights too
    arms = ("loop", *engines)
    rates: dict[str, list[float]] = {arm: [] for arm in arms}
    tokens: dict[str, list[int]] = {}
    for turn in range(options.rounds):
        for arm in (*arms[turn % 3 :], *arms[: turn % 3]):
            rate, tokens[arm] = (
                loop_turn(loop, ids, options.tokens)
                if arm == "loop"
                else await engine_turn(engines[arm], ids, options.tokens)
            )
            rates[arm].append(rate)
    for one in engines.values():
        await one.stop()
    plane.close()
    return {
        "tokens_per_s": {arm: summary(values) for arm, values in rates.items()},
        **{f"{arm}_over_loop": summary(over(rates[arm], rates["loop"])) for arm in engines},
        "same_tokens": {arm: tokens[arm] == tokens["loop"] for arm in engines},
    }


def over(arm: list[float], base: list[float]) -> list[float]:
    return [a / b for a, b in zip(arm, base, strict=True)]


def summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        name: round(v, 3)
        for name, v in (("median", statistics.median(ordered)), ("least", ordered[0]), ("greatest", ordered[-1]))
    }


def machine() -> dict[str, object]:
    return {"cores": os.cpu_count(), "load": round(psutil.getloadavg()[0], 2), "python": platform.python_version()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("build/demo-bundle"))
    parser.add_argument("--precisions", default="fp32,int4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    bundle = Bundle(options.bundle)
    result: dict[str, object] = {"machine": machine(), "threads": options.threads, "ratios": []}
    for precision in options.precisions.split(","):
        with tuned_runner() as runner:
            measured = runner.run(compare(bundle, precision, options))
        result[precision] = measured
        for arm, bar in (("exact", BAR), ("fast", FAST_BAR)):
            what = f"one process, {arm}, over the fused graph, {precision}"
            result["ratios"].append({"what": what, "value": measured[f"{arm}_over_loop"], "at_least": bar})
    publish("decode", result)


if __name__ == "__main__":
    main()
