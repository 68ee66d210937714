"""`make bench-peers`: one random-weight Qwen3-MoE in this project and in the engines that people would use instead.

Every engine is one process, started once and idle while others are asked. A round asks all of them for the same work,
each round in another order, with the machine's own limits measured in the same round. Medians are over rounds, ratios
are taken per round. What cannot be installed or converted is reported as such, and the others are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
from interleaving import RESULTS
from peers.preparing import ARMS, NotPrepared, arm_options, prepare
from peers.processes import ArmFailed, ArmProcess, limits_process, start
from peers.reporting import Rounds, rows, table_lines, write_page
from rich.console import Console
from rich.table import Table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "peers.md"
LOGS = RESULTS / "peers"
WORKS: dict[str, dict] = {
    "decode, one sequence": {"do": "decode", "batch": 1, "prompt": 32, "tokens": 64},
    "decode, 8 sequences": {"do": "decode", "batch": 8, "prompt": 32, "tokens": 32},
    "prompt of 256 tokens": {"do": "prefill", "tokens": 256},
}
WARM_UP_TOKENS = 8
WIDTH = 120
"""Of the table at least, so that a log has whole cells."""


def open_arms(threads: int, wanted: Sequence[str]) -> tuple[list[ArmProcess], dict[str, str]]:
    """The arms that run, and why the others do not."""
    running, missing = [], {}
    for plan in ARMS:
        if wanted and plan.name not in wanted:
            continue
        try:
            running.append(start(plan, threads, LOGS / f"{threads}-threads"))
        except ArmFailed as error:
            missing[plan.name] = str(error)
    return running, missing


def warm_up(arms: Sequence[ArmProcess]) -> None:
    """Every size once: buffers, code and choices are there before the first round."""
    for arm in arms:
        for work in WORKS.values():
            short = work if work["do"] == "prefill" else {**work, "tokens": WARM_UP_TOKENS}
            arm.ask({**short, "seed": 0})


def measure(arms: Sequence[ArmProcess], limits: ArmProcess, count: int) -> tuple[Rounds, dict[str, list[float]]]:
    taken: Rounds = {name: {arm.name: [] for arm in arms} for name in WORKS}
    given: dict[str, list[float]] = {"read": [], "fp32": [], "int8": []}
    for turn in range(count):
        given["read"].append(limits.ask({"do": "read"})["per_s"])
        for kind, rate in limits.ask({"do": "multiply"}).items():
            given[kind].append(rate)
        first = turn % len(arms)
        for name, work in WORKS.items():
            for arm in (*arms[first:], *arms[:first]):
                taken[name][arm.name].append(arm.ask({**work, "seed": 1 + turn})["ms_per_token"])
    return taken, given


def compare(threads: int, options: argparse.Namespace) -> dict[str, object]:
    arms, missing = open_arms(threads, options.arms)
    if not arms:
        sys.exit(f"no engine runs: {missing}")
    limits = limits_process(threads, LOGS / f"{threads}-threads")
    try:
        warm_up(arms)
        taken, given = measure(arms, limits, options.rounds)
        about = {arm.name: arm.ask({"do": "tell"}) for arm in arms}
    finally:
        for process in (*arms, limits):
            process.stop()
    return {
        "engines": about,
        "missing": missing,
        "limits_per_s": given,
        "ms_per_token": taken,
        "rows": rows(WORKS, taken, given),
    }


def show(threads: int, found: dict) -> None:
    header, _, *body = (line.strip("| ").split(" | ") for line in table_lines(found["rows"]))
    table = Table(*header, title=f"threads: {threads}")
    for line in body:
        table.add_row(*line)
    Console(width=max(WIDTH, Console().width)).print(table)
    for name, reason in found["missing"].items():
        print(f"not compared, {name}: {reason}")


def page_lines(result: dict, found: dict[int, dict]) -> list[str]:
    machine = result["machine"]
    lines = [f"Machine: {machine['cores']} cores, {machine['processor']}; {result['rounds']} rounds in one run.", ""]
    for threads, one in found.items():
        given = {kind: max(rates) / 1e9 for kind, rates in one["limits_per_s"].items()}
        limits = f"{given['read']:.1f} GB/s read, {given['fp32']:.0f} (float32) and {given['int8']:.0f} (int8)"
        lines += [f"### Threads: {threads}", "", f"The machine gives {limits} G multiplications/s at most.", ""]
        lines += [*table_lines(one["rows"]), ""]
        for name, reason in one["missing"].items():
            lines += [f"Not compared, {name}: {reason}", ""]
    lines += ["Settings and versions, as each engine says them:", ""]
    lines += [f"- {name}: {_told(about)}" for name, about in next(iter(found.values()))["engines"].items()]
    return lines


def _told(about: dict[str, object]) -> str:
    return "; ".join(f"{key} {value}" for key, value in about.items())


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", default="1,2", help="comma-separated; one comparison each")
    options = arm_options(parser, ARMS)
    try:
        checked = prepare()
    except NotPrepared as error:
        sys.exit(f"the engines would not run the same model: {error}")
    about = {"cores": os.cpu_count(), "processor": processor(), "load": round(psutil.getloadavg()[0], 2)}
    result: dict[str, object] = {"machine": about, "rounds": options.rounds, "conversions": checked}
    found = {int(threads): compare(int(threads), options) for threads in options.threads.split(",")}
    result["threads"] = found
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "peers.json").write_text(json.dumps(result, indent=1) + "\n")
    for threads, one in found.items():
        show(threads, one)
    if options.write_page:
        write_page(PAGE, page_lines(result, found))


if __name__ == "__main__":
    main()
