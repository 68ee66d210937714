"""What it means that a served model says what transformers says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models import hf_checkpoints as hf
from parity.served_model import ServedModel

TOLERANCE = 1e-5
"""Of logits, as a share of the largest one."""
VISIBLE = 1e-3
"""The least share by which a model differs that lacks something."""
STEPS = 16


def assert_equal_logits(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max())


def assert_equal_prompt_and_steps(served: ServedModel, reference: Path, ids: list[int]) -> None:
    """Every logit of the prompt `ids` and of 16 greedy steps after it is that of the checkpoint `reference`."""
    prompt = served.prompt_logits(ids)
    assert_equal_logits(prompt, hf.reference_logits(reference, ids))

    tokens, steps = greedy_steps(served, prompt[-1], len(ids))
    np.testing.assert_array_equal(tokens, hf.reference_greedy(reference, ids, STEPS))
    assert_equal_logits(steps, hf.reference_logits(reference, ids + tokens)[len(ids) - 1 : -1])


def greedy_steps(served: ServedModel, last: np.ndarray, cached: int) -> tuple[list[int], np.ndarray]:
    """(the tokens, the logits float32 [16, vocabulary] that each came from) after a prompt of `cached` tokens.

    `last` float32 [vocabulary] are the logits of the prompt's last token.
    """
    logits, tokens = [last], []
    while len(tokens) < STEPS:
        tokens.append(int(logits[-1].argmax()))
        logits.append(served.next_logits(tokens[-1], cached + len(tokens) - 1))
    return tokens, np.stack(logits[:STEPS])


def share_apart(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference of logits as a share of the largest logit."""
    return float(np.abs(got - want).max() / np.abs(want).max())
