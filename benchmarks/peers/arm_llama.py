"""llama.cpp through the C interface of llama-cpp-python: batches in, logits out, greedy."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path

import llama_cpp as lib
import model_c
import numpy as np
from serving import WARM_TOKENS, Prompts, serve

SEQUENCES, BATCH_TOKENS, CONTEXT_TOKENS = 8, 512, 512


@lib.llama_log_callback
def _silence(_level, _text, _data) -> None:
    """llama.cpp logs its model's every tensor."""


class Llama:
    def __init__(self, file: Path, threads: int) -> None:
        lib.llama_log_set(_silence, None)
        lib.llama_backend_init()
        self.model = self._load(file)
        settings = lib.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = SEQUENCES * CONTEXT_TOKENS, SEQUENCES
        settings.n_batch = settings.n_ubatch = BATCH_TOKENS
        settings.n_threads = settings.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, settings)
        self.batch = lib.llama_batch_init(BATCH_TOKENS, 0, 1)
        flags = lib.llama_print_system_info().decode().removeprefix("CPU : ").rstrip(" |").split(" | ")
        self.about: dict[str, object] = {
            "version": version("llama-cpp-python"),
            "weights": file.stem,
            "compiled for": " ".join(part.split()[0] for part in flags if part.endswith("= 1")),
        }

    def _load(self, file: Path) -> lib.llama_model_p | None:
        return lib.llama_model_load_from_file(str(file).encode(), lib.llama_model_default_params())

    def decode(self, prompts: Prompts, tokens: int) -> tuple[float, list[int]]:
        self._forget()
        last = [int(self._read(prompt, sequence).argmax()) for sequence, prompt in enumerate(prompts)]
        answer, position = [last[0]], len(prompts[0])
        start = 0.0
        for step in range(WARM_TOKENS - 1 + tokens):
            if step == WARM_TOKENS - 1:
                start = time.perf_counter()
            last = self._step(last, position + step)
            answer.append(last[0])
        return time.perf_counter() - start, answer

    def prefill(self, prompt: list[int]) -> float:
        self._forget()
        start = time.perf_counter()
        self._read(prompt, 0).argmax()
        return time.perf_counter() - start

    def logits(self, ids: list[int]) -> np.ndarray:
        """One row per token."""
        self._forget()
        for place, token in enumerate(ids):
            self._put(place, token, place, 0, wanted=True)
        self._run(len(ids))
        return np.stack([self._row(place).copy() for place in range(len(ids))])

    def _read(self, prompt: list[int], sequence: int) -> np.ndarray:
        for place, token in enumerate(prompt):
            self._put(place, token, place, sequence, wanted=place == len(prompt) - 1)
        self._run(len(prompt))
        return self._row(len(prompt) - 1)

    def _step(self, last: list[int], position: int) -> list[int]:
        for sequence, token in enumerate(last):
            self._put(sequence, token, position, sequence, wanted=True)
        self._run(len(last))
        return [int(self._row(sequence).argmax()) for sequence in range(len(last))]

    def _put(self, place: int, token: int, position: int, sequence: int, *, wanted: bool) -> None:
        batch = self.batch
        batch.token[place], batch.pos[place], batch.logits[place] = token, position, wanted
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence

    def _run(self, tokens: int) -> None:
        self.batch.n_tokens = tokens
        status = lib.llama_decode(self.context, self.batch)
        assert status == 0, f"llama_decode returned {status}"

    def _row(self, place: int) -> np.ndarray:
        return np.ctypeslib.as_array(lib.llama_get_logits_ith(self.context, place), (model_c.VOCABULARY,))

    def _forget(self) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)


if __name__ == "__main__":
    serve(Llama)
