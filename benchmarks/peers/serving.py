"""An engine behind JSON lines: asked on stdin, answering on stdout, blocked in between so that others have the machine.

{"do": "decode", "seed": 1, "batch": 1, "prompt": 32, "tokens": 64} -> {"ms_per_token": .., "ids": [..]}
{"do": "prefill", "seed": 1, "tokens": 256} -> {"ms_per_token": ..}
{"do": "tell"} -> its version and settings

Prompts are drawn from the seed, the same for every engine. Decoding is greedy; `tokens` are counted per sequence and
timed after the prompt and `WARM_TOKENS`, as steps of all sequences together. `ids` are the first sequence's answer,
warm tokens included. Reading a prompt ends when its first token is known.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import model_c

__all__ = ["WARM_TOKENS", "Engine", "serve"]

WARM_TOKENS = 4

Prompts = list[list[int]]


class Engine(Protocol):
    """What an arm can do. `about` names its version and settings."""

    about: dict[str, object]

    def decode(self, prompts: Prompts, tokens: int) -> tuple[float, list[int]]:
        """Seconds of `tokens` steps, and the first sequence's ids."""
        ...

    def prefill(self, prompt: list[int]) -> float:
        """Seconds until the first token."""
        ...


def draw_prompts(seed: int, batch: int, tokens: int) -> Prompts:
    ids = random.Random(seed)
    return [[ids.randrange(model_c.VOCABULARY) for _ in range(tokens)] for _ in range(batch)]


def answer(engine: Engine, ask: dict) -> dict[str, object]:
    if ask["do"] == "tell":
        return engine.about
    if ask["do"] == "prefill":
        (prompt,) = draw_prompts(ask["seed"], 1, ask["tokens"])
        return {"ms_per_token": engine.prefill(prompt) * 1e3 / len(prompt)}
    prompts = draw_prompts(ask["seed"], ask["batch"], ask["prompt"])
    seconds, ids = engine.decode(prompts, ask["tokens"])
    return {"ms_per_token": seconds * 1e3 / (ask["tokens"] * len(prompts)), "ids": ids}


def serve(open_engine: Callable[[Path, int], Engine], arguments: Sequence[str] | None = None) -> None:
    """Answer until stdin ends; what libraries print goes to stderr. `arguments` are those of the command by default."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1) as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        engine = open_engine(options.model, options.threads)
        for line in sys.stdin:
            print(json.dumps(answer(engine, json.loads(line))), file=answers)
