"""What became of a model's targets, in words."""

from __future__ import annotations

from expertmesh.operating import ModelStatus, TargetState

__all__ = ["target_lines", "targets_word"]

_MEANINGS = {"ttft_p95_ms": "time to the first token", "token_p95_ms": "time between tokens"}


def targets_word(model: ModelStatus) -> str:
    """All targets in one word: the worst of them, `-` where nothing was promised."""
    states = {target.state for target in model.targets}
    return next((word for word in ("missed", "unseen", "met") if word in states), "-")


def target_lines(model: ModelStatus) -> tuple[str, ...]:
    """One line a target: what was promised, what was seen."""
    return tuple(_line(target, model.sla.window_s) for target in model.targets)


def _line(target: TargetState, window_s: float) -> str:
    what = f"{target.state}: {_MEANINGS[target.name]} p95"
    if target.seen_ms is None:
        return f"{what} at most {target.promised_ms:g} ms, no answer in the last {window_s:g} s"
    return f"{what} {target.seen_ms:.1f} ms, at most {target.promised_ms:g} ms, over {window_s:g} s"
