"""The arms of `make bench-remote`, and the backend that one of them needs."""

from __future__ import annotations

import sys
from pathlib import Path

from peers.preparing import CHECKED, CHECKPOINT, FOLDER, HERE, PEERS_PYTHON, ArmPlan, Step

__all__ = ["ARMS", "BARS", "CHECKED_REMOTE", "LOCAL", "RPC", "rpc_steps"]

RPC_BACKEND = FOLDER / "libggml-rpc.so"
CHECKED_REMOTE = FOLDER / "checked-remote.json"
_BUNDLE, _GGUF = FOLDER / "bundle", FOLDER / "gguf" / "Q4_0.gguf"
_SPIN_US = 1000
"""Longer than any wait within a step of this model."""


def ours(name: str, *arguments: str) -> ArmPlan:
    return ArmPlan(f"expertmesh {name}", "arm_ours_remote.py", Path(sys.executable), _BUNDLE, "int4", arguments)


RPC = ArmPlan("llama.cpp RPC", "arm_llama_remote.py", PEERS_PYTHON, _GGUF, "Q4_0", (str(RPC_BACKEND),))
UNIX, TCP = ours("unix", "unix"), ours("TCP", "tcp")
SPINNING_UNIX = ours("unix spinning", "unix", "--spin-us", str(_SPIN_US))
SPINNING_TCP = ours("TCP spinning", "tcp", "--spin-us", str(_SPIN_US))
LLAMA_LOCAL = ArmPlan("llama.cpp one process", "arm_llama.py", PEERS_PYTHON, _GGUF, "Q4_0")
OURS_LOCAL = ours("one process", "local")
EXACT = ours("unix spinning, exact", "unix", "--spin-us", str(_SPIN_US), "--numerics", "exact")
EXACT_LOCAL = ours("one process, exact", "local", "--numerics", "exact")

_FAST = (UNIX, TCP, SPINNING_UNIX, SPINNING_TCP)
ARMS = (RPC, *_FAST, EXACT, LLAMA_LOCAL, OURS_LOCAL, EXACT_LOCAL)
BARS = {UNIX.name: 1.7, TCP.name: 1.5, SPINNING_UNIX.name: 1.7, SPINNING_TCP.name: 1.5}
"""How many times as fast as llama.cpp's RPC, at least."""
LOCAL = {
    RPC.name: LLAMA_LOCAL.name,
    EXACT.name: EXACT_LOCAL.name,
    **{plan.name: OURS_LOCAL.name for plan in _FAST},
}
"""Who computes the same in one process."""


def rpc_steps() -> tuple[Step, Step]:
    """Making the backend, and proving that nothing but the place of the experts changes with it."""
    python, installed = str(PEERS_PYTHON), PEERS_PYTHON.parents[1] / ".installed"
    build, check = HERE / "build_rpc.py", HERE / "checking_remote.py"
    proof = [python, str(check), str(CHECKPOINT), str(RPC_BACKEND), str(CHECKED), str(CHECKED_REMOTE)]
    return (
        Step(RPC_BACKEND, [python, str(build), str(RPC_BACKEND)], [build, HERE / "requirements-llama.txt", installed]),
        Step(CHECKED_REMOTE, proof, [RPC_BACKEND, CHECKED, check, HERE / "llama_rpc.py", HERE / "arm_llama_remote.py"]),
    )
