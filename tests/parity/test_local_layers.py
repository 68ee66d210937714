"""Top-k layers whose experts run in the gateway's graphs, beside layers whose experts run on workers.

Both add the same numbers in another order, so a near tie of a random router may pick another expert: near is a
correlation, as for precisions, and far nearer than theirs.
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

        assert np.corrcoef(got.ravel(), exact.ravel())[0, 1] > 0.999, stops


def logits_of(served: ServedModel) -> np.ndarray:
    got = served.prompt_logits(IDS)
    served.close()
    return got
