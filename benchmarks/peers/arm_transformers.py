"""transformers in float32: a bare greedy loop over the model, by the faster of its expert implementations."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import transformers
from serving import WARM_TOKENS, Prompts, serve
from transformers import AutoModelForCausalLM, DynamicCache

IMPLEMENTATIONS = ("eager", "grouped_mm")
"""The third, batched_mm, copies every token's experts and is several times slower here."""

TRIAL_TOKENS = 4


class Transformers:
    """Which implementation is faster is tried once per kind of work, when it is first asked for."""

    def __init__(self, folder: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.about: dict[str, object] = {"version": transformers.__version__, "torch": torch.__version__}
        self._faster: dict[str, str] = {}

    def decode(self, prompts: Prompts, tokens: int) -> tuple[float, list[int]]:
        self._choose(f"decoding {len(prompts)}", lambda: self._decode(prompts, TRIAL_TOKENS)[0])
        return self._decode(prompts, tokens)

    def prefill(self, prompt: list[int]) -> float:
        self._choose("prompts", lambda: self._prefill(prompt))
        return self._prefill(prompt)

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([ids])).logits[0]

    def _choose(self, work: str, trial) -> None:
        if work not in self._faster:
            self._faster[work] = min(IMPLEMENTATIONS, key=lambda name: self._tried(name, trial))
            self.about["experts"] = ", ".join(f"{name} for {key}" for key, name in self._faster.items())
        self.model.set_experts_implementation(self._faster[work])

    def _tried(self, name: str, trial) -> float:
        self.model.set_experts_implementation(name)
        return min(trial() for _ in range(2))

    @torch.inference_mode()
    def _decode(self, prompts: Prompts, tokens: int) -> tuple[float, list[int]]:
        cache = DynamicCache(config=self.model.config)
        ids = self._step(torch.tensor(prompts), cache)
        answer = [ids]
        start = 0.0
        for step in range(WARM_TOKENS - 1 + tokens):
            if step == WARM_TOKENS - 1:
                start = time.perf_counter()
            ids = self._step(ids, cache)
            answer.append(ids)
        seconds = time.perf_counter() - start
        return seconds, torch.cat(answer, dim=1)[0].tolist()

    @torch.inference_mode()
    def _prefill(self, prompt: list[int]) -> float:
        start = time.perf_counter()
        self._step(torch.tensor([prompt]), DynamicCache(config=self.model.config))
        return time.perf_counter() - start

    def _step(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        logits = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1].argmax(dim=-1, keepdim=True)


if __name__ == "__main__":
    serve(Transformers)
