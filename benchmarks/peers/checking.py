"""Do the converted models compute what the checkpoint does? `checking.py CHECKPOINT REPORT`.

Converted without quantising, the same 32 tokens must give transformers' logits and then the same greedy answer.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from arm_transformers import Transformers
from serving import WARM_TOKENS, draw_prompts

TOKENS = 32
ALLOWED = {"onnxruntime-genai": 1e-3, "llama.cpp": 1e-2}
"""Largest difference of a logit; logits are about as large as 1. llama.cpp keeps keys and values in 16 bits."""


def compare(engine, name: str, expected: np.ndarray, ids: list[int], answer: list[int]) -> dict[str, object]:
    difference = float(np.abs(engine.logits(ids) - expected).max())
    same = engine.decode([ids], len(answer) - WARM_TOKENS)[1] == answer
    if difference > ALLOWED[name] or not same:
        raise SystemExit(f"{name}: logits differ by {difference:.2g}, greedy answers are {'' if same else 'not '}equal")
    return {"largest_difference": difference, "same_greedy_tokens": len(answer)}


def converted(name: str, checkpoint: Path, scratch: Path):
    """An engine over the float32 conversion."""
    if name == "onnxruntime-genai":
        from arm_genai import Genai  # noqa: PLC0415 - each may be missing
        from convert_genai import convert  # noqa: PLC0415

        convert(checkpoint, scratch / "genai", "fp32")
        return Genai(scratch / "genai", 1)
    from arm_llama import Llama  # noqa: PLC0415
    from convert_gguf import convert  # noqa: PLC0415

    convert(checkpoint, scratch / "F32.gguf", "F32")
    return Llama(scratch / "F32.gguf", 1)


def main() -> None:
    checkpoint, report = Path(sys.argv[1]), Path(sys.argv[2])
    (ids,) = draw_prompts(0, 1, TOKENS)
    reference = Transformers(checkpoint, 1)
    expected, (_, answer) = reference.logits(ids).numpy(), reference.decode([ids], TOKENS)
    found: dict[str, object] = {"prompt": ids, "greedy_answer": answer}
    for name in ("onnxruntime-genai", "llama.cpp"):
        with tempfile.TemporaryDirectory(dir=report.parent) as scratch:
            try:
                engine = converted(name, checkpoint, Path(scratch))
            except (ImportError, OSError, RuntimeError) as error:  # how a package without its library says so
                found[name] = {"not_compared": str(error)}
                continue
            found[name] = compare(engine, name, expected, ids, answer)
            del engine
    report.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
