"""The other precisions: a 16-bit checkpoint loses nothing at its own; codes stay near.

Rounding sends some rows of a random model to other experts, so near is a correlation: a mistake in a layout gives 0.
"""

import numpy as np
import pytest

from models import hf_checkpoints as hf
from parity.conftest import IDS
from parity.served_model import ServedModel


@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", "bf16"), ("float16", "fp16")])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_a_16_bit_checkpoint_is_exact_at_its_own_precision(family, dtype, precision, checkpoint, imported) -> None:
    folder = checkpoint(family, dtype=dtype)
    served = ServedModel(imported(folder, precisions=(precision,)), precision)

    got = served.prompt_logits(IDS)

    served.close()
    want = hf.reference_logits(folder, IDS)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.98), ("int8", 0.9), ("int4", 0.4)])
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss", "deepseek_v3", "granitemoe"])
def test_rounded_weights_stay_near(family, precision, least, checkpoint, imported) -> None:
    folder = checkpoint(family)
    served = ServedModel(imported(folder, precisions=(precision,)), precision)

    got = served.prompt_logits(IDS)

    served.close()
    near = np.corrcoef(got.ravel(), hf.reference_logits(folder, IDS).ravel())[0, 1]
    assert least < near
