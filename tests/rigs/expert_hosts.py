"""Hosts that answer requests without ONNX: the identity, and tiny SwiGLU experts in plain numpy."""

import threading
from dataclasses import dataclass, field

import numpy as np

from expertmesh_common.channel.frame import Reply, Status


class IdentityHost:
    """Every expert returns its rows, so the weighted sum is rows times the sum of weights."""

    def execute(self, request):
        gain = np.bincount(request.row, request.weight, len(request.rows)).astype(np.float32)
        return Reply.of_rows(request.seq, request.rows * gain[:, None])


def expert_weights(layers, experts, hidden, width, seed=0):
    """{(layer, expert): (gate, up, down)} of random float32 matrices."""
    rng = np.random.default_rng(seed)
    shapes = (hidden, width), (hidden, width), (width, hidden)
    return {
        (layer, expert): tuple(rng.standard_normal(s).astype(np.float32) / 4 for s in shapes)
        for layer in range(layers)
        for expert in range(experts)
    }


def swiglu(rows, weights):
    gate, up, down = weights
    inner = rows @ gate
    return (inner / (1 + np.exp(-inner)) * (rows @ up)) @ down


@dataclass
class TinyHost:
    """Holds some experts of one model; `resident` may change while it runs. Sums pair by pair."""

    weights: dict
    resident: set
    pause: threading.Event = field(default_factory=threading.Event)  # set: requests wait for `resume`
    resume: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    failing: bool = False
    requests: list = field(default_factory=list)

    def execute(self, request):
        pairs = [
            (int(r), int(e), float(w)) for r, e, w in zip(request.row, request.expert, request.weight, strict=True)
        ]
        self.requests.append((request.layer, [(r, e) for r, e, _ in pairs], request.epoch))
        if self.pause.is_set():
            self.entered.set()
            self.resume.wait(30)
        if self.failing:
            return Reply.error(request.seq, Status.FAILED, "told to fail")
        missing = sorted({e for _, e, _ in pairs if (request.layer, e) not in self.resident})
        if missing:
            return Reply.stale(request.seq, missing)
        out = np.zeros(request.rows.shape, np.float32)
        for row, expert, weight in sorted(pairs, key=lambda p: (p[1], p[0])):
            out[row] += weight * swiglu(request.rows[row], self.weights[request.layer, expert])
        return Reply.of_rows(request.seq, out)
