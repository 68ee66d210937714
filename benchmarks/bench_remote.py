"""`make bench-remote`: only the experts in another process on this host, here and over llama.cpp's RPC.

One sequence is decoded greedily over four-bit weights, with one thread per process. Bars: over unix sockets at least
1.7 x llama.cpp's RPC, over TCP 1.5 x. Arms are processes, started once and asked in turn; ratios are taken per round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence

import psutil
from bench_peers import PAGE, processor
from interleaving import RESULTS
from peers.preparing import NotPrepared, arm_options, prepare
from peers.processes import ArmFailed, ArmProcess, start
from peers.remote_arms import ARMS, BARS, LOCAL, RPC, rpc_steps
from peers.reporting import spread, write_page
from rich.console import Console
from rich.table import Table

LOGS = RESULTS / "remote"
WORK: dict[str, object] = {"do": "decode", "batch": 1, "prompt": 32, "tokens": 64}
BEGIN, END = "<!-- make bench-remote: begin -->", "<!-- make bench-remote: end -->"
HEADER = ("engine", "tokens/s", "over llama.cpp's RPC", "bar", "met", "answers as in one process")
WIDTH = 120

Answers = dict[str, list[dict]]
"""What each arm answered, one per round."""


def open_arms(wanted: Sequence[str]) -> tuple[list[ArmProcess], dict[str, str]]:
    """The arms that run, and why the others do not."""
    running, missing = [], {}
    for plan in ARMS:
        if wanted and plan.name not in wanted:
            continue
        try:
            if plan is RPC:
                for step in rpc_steps():
                    step.run()
            running.append(start(plan, 1, LOGS))
        except (ArmFailed, NotPrepared) as error:
            missing[plan.name] = str(error)
    return running, missing


def measure(arms: Sequence[ArmProcess], rounds: int) -> Answers:
    for arm in arms:
        arm.ask({**WORK, "seed": 0})
    taken: Answers = {arm.name: [] for arm in arms}
    for turn in range(rounds):
        first = turn % len(arms)
        for arm in (*arms[first:], *arms[:first]):
            taken[arm.name].append(arm.ask({**WORK, "seed": 1 + turn}))
    return taken


def rows(taken: Answers) -> list[dict[str, object]]:
    """One per arm; `over` is how many times as fast as llama.cpp's RPC it is, None without that arm."""
    base = taken.get(RPC.name)
    return [
        {
            "engine": name,
            "tokens_per_s": spread(1e3 / one["ms_per_token"] for one in answers),
            "over": over(answers, base) if base and name != RPC.name else None,
            "at_least": BARS.get(name),
            "same_answers": same_tokens(answers, taken.get(LOCAL.get(name, ""))),
        }
        for name, answers in taken.items()
    ]


def over(answers: list[dict], base: list[dict]) -> dict[str, float]:
    pairs = zip(answers, base, strict=True)
    return spread(theirs["ms_per_token"] / ours["ms_per_token"] for ours, theirs in pairs)


def same_tokens(answers: list[dict], local: list[dict] | None) -> str:
    """How many tokens are those of the same engine in one process, up to the first other one of each round."""
    if local is None:
        return ""
    pairs = [(one["ids"], other["ids"]) for one, other in zip(answers, local, strict=True)]
    alike = sum(1 for a, b in pairs for _ in itertools.takewhile(lambda two: two[0] == two[1], zip(a, b, strict=True)))
    return f"{alike} of {sum(len(a) for a, _ in pairs)}"


def cells(row: dict) -> tuple[str, ...]:
    rate, times, bar = row["tokens_per_s"], row["over"], row["at_least"]
    judged = times is not None and bar is not None
    return (
        row["engine"],
        f"{rate['median']:.0f} ({rate['least']:.0f} - {rate['greatest']:.0f})",
        f"{times['median']:.2f} ({times['least']:.2f} - {times['greatest']:.2f})" if times else "",
        f">= {bar}" if judged else "",
        ("yes" if times["median"] >= bar else "**no**") if judged else "",
        row["same_answers"],
    )


def show(result: dict) -> None:
    table = Table(*HEADER)
    for row in result["rows"]:
        table.add_row(*cells(row))
    Console(width=max(WIDTH, Console().width)).print(table)
    for name, reason in result["missing"].items():
        print(f"left out, {name}: {reason}")


def page_lines(result: dict) -> list[str]:
    machine = result["machine"]
    table = [HEADER, ["---"] * len(HEADER), *(cells(row) for row in result["rows"])]
    where = f"Machine: {machine['cores']} cores, {machine['processor']}, load {machine['load']} at the end"
    lines = [f"{where}; {result['rounds']} rounds in one run.", ""]
    lines += [f"| {' | '.join(line)} |" for line in table]
    lines += ["", *(f"Left out, {name}: {reason}\n" for name, reason in result["missing"].items())]
    told = {name: about["experts"] for name, about in result["engines"].items() if "experts" in about}
    return [*lines, *(f"- {name}: {experts}" for name, experts in told.items())]


def main() -> None:
    options = arm_options(argparse.ArgumentParser(description=__doc__), ARMS)
    try:
        prepare()
    except NotPrepared as error:
        sys.exit(f"the engines would not run the same model: {error}")
    arms, missing = open_arms(options.arms)
    if not arms:
        sys.exit(f"no engine runs: {missing}")
    try:
        taken = measure(arms, options.rounds)
        engines = {arm.name: arm.ask({"do": "tell"}) for arm in arms}
    finally:
        for arm in arms:
            arm.stop()
    about = {"cores": os.cpu_count(), "processor": processor(), "load": round(psutil.getloadavg()[0], 2)}
    result = {
        "machine": about, "rounds": options.rounds, "engines": engines, "missing": missing, "rows": rows(taken),
        "ms_per_token": {name: [one["ms_per_token"] for one in answers] for name, answers in taken.items()},
    }  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "remote.json").write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    if options.write_page:
        write_page(PAGE, page_lines(result), BEGIN, END)


if __name__ == "__main__":
    main()
