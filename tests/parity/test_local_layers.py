"""Top-k layers whose experts run in the gateway's graphs, beside layers whose experts run on workers.

Both add the same numbers in another order, so in a model of random weights a near tie may send a row to another expert,
and with it what attends to that row. Rows that no tie reaches agree to rounding, and they are never few.
"""

import numpy as np
import pytest

from parity.conftest import IDS
from parity.served_model import ServedModel


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"])
def test_wherever_experts_run_the_logits_stay_those_of_exact_serving(family, precision, checkpoint, imported) -> None:
    bundle = imported(checkpoint(family), precisions=(precision,))
    layers = range(len(bundle.manifest.layers))
    exact = logits_of(ServedModel(bundle, precision))

    for stops in ((), tuple(layers[1:]), tuple(layers[:-1])):
        got = logits_of(ServedModel(bundle, precision, stops=stops))

        apart = np.abs(got - exact).max(axis=-1) / np.abs(exact).max()
        assert (apart < 1e-5).mean() >= 0.25, stops
        assert apart.max() < 0.1, stops


def logits_of(served: ServedModel) -> np.ndarray:
    got = served.prompt_logits(IDS)
    served.close()
    return got
