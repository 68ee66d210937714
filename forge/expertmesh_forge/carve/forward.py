"""Running a carved model in numpy, to measure it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from expertmesh_forge.carve.carved_model import CarvedLayer, CarvedModel
from expertmesh_forge.dense_forward import Rope, attention, embed, rms_norm, silu
from expertmesh_forge.dense_model import Floats

__all__ = ["CarvedRun", "carved_block", "run_carved"]

_ROWS_PER_CHUNK = 2048


@dataclass(frozen=True, slots=True)
class CarvedRun:
    """`states` float32 [windows, tokens, hidden] before the final norm; `shares` [windows] of neurons evaluated."""

    states: Floats
    shares: npt.NDArray[np.float64]


def run_carved(carved: CarvedModel, tokens: npt.NDArray[np.int64]) -> CarvedRun:
    """Run windows int64 [windows, tokens] through the trunk and the routed experts."""
    model, config = carved.dense, carved.dense.config
    rope = Rope(config, tokens.shape[1])
    states = embed(model, tokens)
    shares = np.zeros(len(tokens))
    for dense, block in zip(model.layers, carved.layers, strict=True):
        states += attention(config, dense, rope, states)
        rows = rms_norm(states, dense.ffn_norm, config.norm_eps).reshape(-1, config.hidden)
        output, picks = carved_block(block, rows)
        states += output.reshape(states.shape)
        evaluated = block.shared_width + block.expert_width * picks.sum(axis=1)
        shares += evaluated.reshape(tokens.shape).mean(axis=1) / config.ffn
    return CarvedRun(states, shares / config.layers)


def carved_block(block: CarvedLayer, rows: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """One carved feed-forward block on normed rows [tokens, hidden]; returns its output and the picks."""
    picks = block.router.picks(rows)
    output = np.empty_like(rows)
    for start in range(0, len(rows), _ROWS_PER_CHUNK):
        chunk = slice(start, start + _ROWS_PER_CHUNK)
        neurons = silu(rows[chunk] @ block.gate.T) * (rows[chunk] @ block.up.T)
        for index in range(block.experts):
            neurons[:, block.expert(index)] *= picks[chunk, index : index + 1]
        output[chunk] = neurons @ block.down.T
    return output, picks
