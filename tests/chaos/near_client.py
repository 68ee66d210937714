"""A client on the near machine: `python -m chaos.near_client ADDRESS COUNT ANSWERS TOKEN` asks for answers of COUNT
tokens one after the other and prints one JSON line per token: its id, and when it came.

A thread cannot enter a network namespace that its process is not in, so the client is a process of its own.
"""

from __future__ import annotations

import json
import sys
import time

from chaos.parts import NO_REPAIR, PROMPT
from expertmesh import Client


def main(address: str, count: int, answers: int, token: str) -> None:
    with Client(address, token=token, resume=NO_REPAIR) as client:
        for _ in range(answers):
            for answered in client.generate(prompt_ids=PROMPT, max_tokens=count, ignore_eos=True, deadline_s=120):
                print(json.dumps([answered.id, time.monotonic()]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
