"""Does our import compute what the checkpoint does? `checking_ours.py CHECKPOINT CHECKED REPORT`.

Imported as float32, the prompt of `checking.py` must give transformers' greedy answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from arm_ours import Ours
from peers.preparing import IMPORT
from serving import WARM_TOKENS


def main() -> None:
    checkpoint, checked, report = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
    expected = checked["greedy_answer"]
    with tempfile.TemporaryDirectory(dir=report.parent) as scratch:
        bundle = Path(scratch) / "bundle"
        subprocess.run([*IMPORT, checkpoint, "--out", str(bundle), "--precisions", "fp32"], check=True)
        _, answer = Ours(bundle, 1).decode([checked["prompt"]], len(expected) - WARM_TOKENS)
    if answer != expected:
        raise SystemExit(f"expertmesh: greedy answers differ: {answer[:8]}.. is not {expected[:8]}..")
    report.write_text(json.dumps({"expertmesh": {"same_greedy_tokens": len(answer)}}) + "\n")


if __name__ == "__main__":
    main()
