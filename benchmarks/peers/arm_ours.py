"""This project's engine in one process with numerics `fast`: what a gateway runs below its doors."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from bench_decode import all_local, make_engine, make_fast_engine
from serving import WARM_TOKENS, Prompts, serve
from threadpoolctl import threadpool_limits

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.huge_pages import collapse
from expertmesh_common.running import tuned_runner
from expertmesh_controller.gateway.batching.engine import Engine
from expertmesh_controller.gateway.batching.jobs import Ended, Failed, Picked, Request, Ticket

SLOTS, CONTEXT_TOKENS = 8, 512
DEADLINE_S = 600.0
Measured = TypeVar("Measured")


class Ours:
    """The engine lives in one event loop, which stands still between the asks."""

    def __init__(self, folder: Path, threads: int) -> None:
        threadpool_limits(threads)
        bundle = Bundle(folder)
        (precision,) = bundle.manifest.precisions
        sizes = {"slots": SLOTS, "context_tokens": CONTEXT_TOKENS}
        if precision == "int4":
            self.engine = make_fast_engine(bundle, precision, threads, **sizes)
        else:  # a top-k gate over fp32 experts has no fused form
            self.engine = make_engine(bundle, precision, all_local(bundle, precision), threads, **sizes)
        self.about: dict[str, object] = {
            "version": version("expertmesh"),
            "onnxruntime": version("onnxruntime"),
            "weights": precision,
        }
        self.runner = tuned_runner()
        self.runner.run(self._start())
        collapse()

    def decode(self, prompts: Prompts, tokens: int) -> tuple[float, list[int]]:
        return self._told(_decode(self.engine, prompts, tokens))

    def prefill(self, prompt: list[int]) -> float:
        return self._told(_prefill(self.engine, prompt))

    def _told(self, work: Coroutine[object, object, Measured]) -> Measured:
        """Run it, and then the loop for a moment: the engine must hear that the answers were read."""
        measured = self.runner.run(work)
        self.runner.run(asyncio.sleep(0.02))
        return measured

    async def _start(self) -> None:
        self.engine.start()


async def _decode(engine: Engine, prompts: Prompts, tokens: int) -> tuple[float, list[int]]:
    """Prompts are read in one after the other while the first answers run, so these are ahead for good.

    Peers begin together, with `WARM_TOKENS` each, and a step takes longer the more it attends over. So what counts here
    is the same on average: from when all have begun and have `WARM_TOKENS` each, until they have `tokens` more.
    """
    spare = (len(prompts) - 1) * 4
    tickets = [_submit(engine, prompt, WARM_TOKENS + tokens + spare) for prompt in prompts]
    answers = await asyncio.gather(*(_collect(engine, ticket) for ticket in tickets))
    return _seconds([times for times, _ in answers], tokens), answers[0][1]


def _seconds(answers: list[list[float]], tokens: int) -> float:
    """Of `tokens` tokens per answer, which are as many steps; `answers` are the moments of their tokens.

    Both ends are found by counting tokens, so that they lie at the same place of a step in which several came.
    """
    moments = sorted(moment for times in answers for moment in times)
    begun = bisect_right(moments, max(times[0] for times in answers))
    warm = max(begun, WARM_TOKENS * len(answers))
    end = moments[warm + tokens * len(answers) - 1]
    assert end <= min(times[-1] for times in answers), "an answer was over while others counted: give it spare tokens"
    return end - moments[warm - 1]


async def _prefill(engine: Engine, prompt: list[int]) -> float:
    start = time.perf_counter()
    times, _ = await _collect(engine, _submit(engine, prompt, 1))
    return times[0] - start


def _submit(engine: Engine, prompt: list[int], tokens: int) -> Ticket:
    return engine.submit(Request(tuple(prompt), tokens, time.monotonic() + DEADLINE_S))


async def _collect(engine: Engine, ticket: Ticket) -> tuple[list[float], list[int]]:
    """When each token came, and which."""
    times: list[float] = []
    ids: list[int] = []
    while not isinstance(event := await ticket.events.get(), Ended):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Picked):
            times.append(time.perf_counter())
            ids.append(event.choice.token_id)
    engine.cancel(ticket)  # it was read to its end
    return times, ids


if __name__ == "__main__":
    serve(Ours)
