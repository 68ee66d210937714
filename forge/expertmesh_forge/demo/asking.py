"""Asking the mesh one question through the SDK, with a stopwatch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from expertmesh.client import Client
from expertmesh.types import Completion, Node

__all__ = ["Answer", "ask", "settled_nodes", "tokens_per_s"]

_LOOK_EVERY_S = 0.05
_HEARTBEATS_S = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Times are the caller's: from the request to the first token, and between tokens."""

    prompt_ids: tuple[int, ...]
    completion: Completion
    ttft_ms: float
    tokens_per_s: float


def ask(client: Client, question: str, max_tokens: int, show: Callable[[str], None]) -> Answer:
    """Stream a greedy answer; `show` gets every piece of text as it arrives."""
    messages = [{"role": "user", "content": question}]
    prompt_ids = client.tokenize(messages=messages).ids
    arrivals: list[float] = []
    began = time.perf_counter()
    with client.chat(messages, max_tokens=max_tokens, temperature=0.0) as stream:
        for token in stream:
            arrivals.append(time.perf_counter())
            show(token.text)
    shown = sum(len(token.text) for token in stream.result.tokens)
    show(stream.result.text[shown:])
    ttft_ms = 1000 * (arrivals[0] - began) if arrivals else 0.0
    return Answer(prompt_ids, stream.result, ttft_ms, tokens_per_s(arrivals))


def tokens_per_s(arrivals: list[float]) -> float:
    """The rate after the first token; 0 for fewer than two tokens. `arrivals` are seconds."""
    took_s = arrivals[-1] - arrivals[0] if arrivals else 0.0
    return (len(arrivals) - 1) / took_s if took_s > 0 else 0.0


def settled_nodes(client: Client) -> tuple[Node, ...]:
    """The workers once each has reported after now, so that the rows of the last answer are counted."""
    began = time.monotonic()
    while True:
        nodes = client.nodes()
        waited_ms = 1000 * (time.monotonic() - began)
        if waited_ms > 1000 * _HEARTBEATS_S or all(node.heartbeat_age_ms < waited_ms for node in nodes):
            return nodes
        time.sleep(_LOOK_EVERY_S)
