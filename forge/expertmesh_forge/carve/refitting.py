"""Closed-form refit of the down projection to the neurons that are really evaluated."""

from __future__ import annotations

import numpy as np

from expertmesh_forge.dense_model import Floats

__all__ = ["refit_down", "refit_target"]

# Neurons that hardly ever fire get a floor under their prior, so that noise cannot move them.
_FLOOR = 1e-4


def refit_down(gated: Floats, target: Floats, down: Floats, ridge: float) -> Floats:
    """The projection [hidden, ffn] that best maps gated neurons [tokens, ffn] to `target` [tokens, hidden].

    Minimises |gated @ W.T - target|^2 + ridge * sum_j energy_j |W_j - down_j|^2, with energy_j = |gated_j|^2: a prior
    at the dense weights, in each neuron's own scale.
    """
    gram = (gated.T @ gated).astype(np.float64)
    moment = (gated.T @ (target - gated @ down.T)).astype(np.float64)
    energy = np.diag(gram)
    penalty = ridge * energy + _FLOOR * energy.mean()
    step = np.linalg.solve(gram + np.diag(penalty), moment)
    refitted: Floats = down + step.T.astype(np.float32)
    return refitted


def refit_target(dense_output: Floats, missing: Floats, correction: float) -> Floats:
    """What the refitted block should add, all [tokens, hidden].

    Between `dense_output`, the dense block's answer to the drifted input, and `missing`, the step back to the dense
    model's own states.
    """
    share = np.float32(correction)
    target: Floats = dense_output + share * (missing - dense_output)
    return target
