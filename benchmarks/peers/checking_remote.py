"""Does llama.cpp compute the same with its experts elsewhere? `checking_remote.py CHECKPOINT LIBRARY CHECKED REPORT`.

Not quantised, the prompt of `checking.py` must give the very logits of one process and transformers' greedy answer.
With four bits the two round differently, so answers may part there.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from arm_llama import Llama
from arm_llama_remote import LlamaRemote
from convert_gguf import convert
from serving import WARM_TOKENS

ALLOWED = 1e-4


def main() -> None:
    checkpoint, backend, checked, report = map(Path, sys.argv[1:])
    told = json.loads(checked.read_text())
    ids, expected = told["prompt"], told["greedy_answer"]
    with tempfile.TemporaryDirectory(dir=report.parent) as scratch:
        file = Path(scratch) / "F32.gguf"
        convert(checkpoint, file, "F32")
        remote = LlamaRemote(file, 1, backend)
        difference = float(np.abs(Llama(file, 1).logits(ids) - remote.logits(ids)).max())
        same = remote.decode([ids], len(expected) - WARM_TOKENS)[1] == expected
    if difference > ALLOWED or not same:
        raise SystemExit(f"logits differ by {difference:.2g}, greedy answers are {'' if same else 'not '}equal")
    found = {"largest_difference": difference, "same_greedy_tokens": len(expected), "experts": remote.about["experts"]}
    report.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
