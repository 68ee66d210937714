"""What serving costs: a fused model through gRPC and the SDK against the same engine in this process.

The served arm is a real `expertmesh up --numerics fast --workers 0`, asked through the SDK's stream; the base is the
engine alone. Both decode one request of the same prompt at one thread, in turn; ratios are taken per round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_decode import engine_turn, machine, make_fast_engine, over, summary
from interleaving import publish

from expertmesh import Client
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.huge_pages import collapse
from expertmesh_common.running import tuned_runner

BAR = 0.9
START_S = 90.0


def served_turn(client: Client, ids: list[int], count: int) -> float:
    """Tokens/s after the first token, as the caller sees them."""
    stream = client.generate(prompt_ids=ids, max_tokens=count, ignore_eos=True)
    times = [time.perf_counter() for _ in stream]
    return (count - 1) / (times[-1] - times[0])


def started(bundle: Path, precision: str, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    ready = folder / "ready.json"
    command = [
        sys.executable, "-m", "expertmesh.cli.main", "up", "--model", str(bundle), "--precision", precision,
        "--numerics", "fast", "--workers", "0", "--listen", "127.0.0.1:0", "--store", "memory", "--http-port", "off",
        "--jobs", "off", "--logs", str(folder), "--ready-file", str(ready),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + START_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > end:
            sys.exit(f"the mesh did not start; see {folder}")
        time.sleep(0.1)
    return process, json.loads(ready.read_text())["address"]


async def compare(path: Path, precision: str, options: argparse.Namespace) -> dict[str, object]:
    bundle = Bundle(path)
    ids = list(range(5, 37))
    engine = make_fast_engine(bundle, precision, 1)
    engine.start()
    collapse()
    rates: dict[str, list[float]] = {"engine": [], "served": []}
    with tempfile.TemporaryDirectory() as folder:
        process, address = started(path, precision, Path(folder))
        try:
            with Client(address) as client:
                for turn in range(options.rounds + 1):
                    for arm in ("engine", "served") if turn % 2 else ("served", "engine"):
                        if arm == "engine":
                            rate, _ = await engine_turn(engine, ids, options.tokens)
                        else:
                            rate = await asyncio.to_thread(served_turn, client, ids, options.tokens)
                        if turn:  # the first is a warm-up
                            rates[arm].append(rate)
        finally:
            process.terminate()
            process.wait(60)
    await engine.stop()
    return {
        "tokens_per_s": {arm: summary(values) for arm, values in rates.items()},
        "served_over_engine": summary(over(rates["served"], rates["engine"])),
        "median": statistics.median(rates["served"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("build/demo-bundle"))
    parser.add_argument("--precisions", default="fp32,int4")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    result: dict[str, object] = {"machine": machine(), "ratios": []}
    for precision in options.precisions.split(","):
        with tuned_runner() as runner:
            measured = runner.run(compare(options.bundle, precision, options))
        result[precision] = measured
        what = f"through gRPC and the SDK over the engine alone, fast, {precision}"
        result["ratios"].append({"what": what, "value": measured["served_over_engine"], "at_least": BAR})
    publish("served", result)


if __name__ == "__main__":
    main()
