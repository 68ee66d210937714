"""Continuous batching: eight unequal requests at once against one after the other, in one process with local experts.

Bar: at most 0.5 x the serial time. Also shown: when a late joiner's first token came relative to the end of the first
finisher, and the longest pause that a 1,500-token prompt caused to a running answer, beside one chunk's own time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from pathlib import Path

from bench_decode import all_local, engine_turn, machine, make_engine, summary
from interleaving import publish

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.running import tuned_runner
from expertmesh_controller.gateway.batching.engine import Engine
from expertmesh_controller.gateway.batching.jobs import Ended, Failed, Picked, Request
from expertmesh_controller.gateway.text.codec import TextCodec

BAR = 0.5
PROMPTS = (
    ("The river rises in the hills and", 40),
    ("def read_lines(path):", 24),
    ("In the year 1848 the government of the republic decided that", 56),
    ("A list of fruits: apple,", 16),
    ("The difference between a list and a tuple is that", 48),
    ("Once upon a time", 32),
    ("Water boils at", 20),
    ("The first law of thermodynamics says that energy", 44),
)


async def arrivals(engine: Engine, ids: list[int], count: int) -> list[float]:
    """The monotonic time of every token."""
    ticket = engine.submit(Request(tuple(ids), count, time.monotonic() + 600))
    times: list[float] = []
    while not isinstance(event := await ticket.events.get(), Ended):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Picked):
            times.append(time.monotonic())
    return times


async def together(engine: Engine, work: list[tuple[list[int], int]]) -> float:
    start = time.perf_counter()
    await asyncio.gather(*(arrivals(engine, ids, count) for ids, count in work))
    return time.perf_counter() - start


async def one_by_one(engine: Engine, work: list[tuple[list[int], int]]) -> float:
    start = time.perf_counter()
    for ids, count in work:
        await arrivals(engine, ids, count)
    return time.perf_counter() - start


async def late_joiner(engine: Engine, work: list[tuple[list[int], int]]) -> dict[str, float]:
    """Seven requests run; the eighth joins after the first token. Seconds from its arrival."""
    running = [asyncio.create_task(arrivals(engine, ids, count)) for ids, count in work[:-1]]
    await asyncio.sleep(0.1)
    joined = time.monotonic()
    late = await arrivals(engine, *work[-1])
    ends = [times[-1] for times in await asyncio.gather(*running)]
    return {"first_token_s": round(late[0] - joined, 3), "first_finisher_ended_s": round(min(ends) - joined, 3)}


async def long_prompt(engine: Engine, short: list[int], long: list[int], chunk_tokens: int) -> dict[str, float]:
    """The longest gap of a running answer while a long prompt is read, and the time one chunk takes by itself."""
    start = time.perf_counter()
    await arrivals(engine, long[:chunk_tokens], 1)
    chunk_s = time.perf_counter() - start
    running = asyncio.create_task(arrivals(engine, short, 40))
    await asyncio.sleep(0.3)
    await arrivals(engine, long, 1)
    times = await running
    gaps = [b - a for a, b in itertools.pairwise(times)]
    return {"prompt_tokens": len(long), "longest_gap_s": round(max(gaps), 3), "one_chunk_alone_s": round(chunk_s, 3)}


async def measure(bundle: Bundle, precision: str, options: argparse.Namespace) -> dict[str, object]:
    plane = all_local(bundle, precision)
    engine = make_engine(bundle, precision, plane, options.threads, slots=8, context_tokens=2048)
    engine.start()
    codec = TextCodec(bundle)
    work = [(codec.encode(text), count) for text, count in PROMPTS]
    await engine_turn(engine, work[0][0], 8)
    ratios, times = [], {"together_s": [], "serial_s": []}
    for turn in range(options.rounds):
        order = (together, one_by_one) if turn % 2 else (one_by_one, together)
        took = {run: await run(engine, work) for run in order}
        times["together_s"].append(took[together])
        times["serial_s"].append(took[one_by_one])
        ratios.append(took[together] / took[one_by_one])
    long = (codec.encode(" ".join(text for text, _ in PROMPTS)) * 40)[:1500]
    result = {
        **{name: summary(values) for name, values in times.items()},
        "together_over_serial": summary(ratios),
        "late_joiner": await late_joiner(engine, work),
        "long_prompt": await long_prompt(engine, work[0][0], long, 256),
    }
    await engine.stop()
    plane.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("build/demo-bundle"))
    parser.add_argument("--precisions", default="fp32,int4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    bundle = Bundle(options.bundle)
    result: dict[str, object] = {"machine": machine(), "threads": options.threads, "ratios": []}
    for precision in options.precisions.split(","):
        with tuned_runner() as runner:
            measured = runner.run(measure(bundle, precision, options))
        result[precision] = measured
        what = f"eight requests together over one by one, {precision}"
        result["ratios"].append({"what": what, "value": measured["together_over_serial"], "at_most": BAR})
    publish("batching", result)


if __name__ == "__main__":
    main()
