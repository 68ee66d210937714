"""onnxruntime-genai: its own generator, greedy, over a folder that `convert_genai.py` wrote."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
from serving import WARM_TOKENS, Prompts, serve


class Genai:
    def __init__(self, folder: Path, threads: int) -> None:
        config = og.Config(str(folder))
        session = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = og.Model(config)
        self.about: dict[str, object] = {
            "version": version("onnxruntime-genai"),
            "onnxruntime": version("onnxruntime"),
            "weights": "int4, blocks of 128, accuracy level 4",
        }

    def decode(self, prompts: Prompts, tokens: int) -> tuple[float, list[int]]:
        generator = self._generator(prompts, WARM_TOKENS + tokens)
        for _ in range(WARM_TOKENS):
            generator.generate_next_token()
        start = time.perf_counter()
        for _ in range(tokens):
            generator.generate_next_token()
        seconds = time.perf_counter() - start
        answer = generator.get_sequence(0)[len(prompts[0]) :].tolist()
        assert len(answer) == WARM_TOKENS + tokens, "the answer ended early"
        return seconds, answer

    def prefill(self, prompt: list[int]) -> float:
        start = time.perf_counter()
        self._generator([prompt], 1).generate_next_token()
        return time.perf_counter() - start

    def logits(self, ids: list[int]) -> np.ndarray:
        return self._generator([ids], 1).get_output("logits")[0]

    def _generator(self, prompts: Prompts, tokens: int) -> og.Generator:
        """With the prompts read in, and room for `tokens` more."""
        params = og.GeneratorParams(self.model)
        params.set_search_options(max_length=len(prompts[0]) + tokens, batch_size=len(prompts), do_sample=False)
        generator = og.Generator(self.model, params)
        generator.append_tokens(np.array(prompts, np.int32))
        return generator


if __name__ == "__main__":
    serve(Genai)
