"""Latent attention has two epsilons: the config's in the layers' norms, and one of its own in the norms inside it."""

import pytest

from models import hf_checkpoints as hf
from parity.agreement import assert_equal_logits
from parity.conftest import IDS

# As Moonlight has it, and so large that no norm may have the other's.
EPSILONS = (1e-5, 1e-2)
SETTINGS = {
    "deepseek-v2": ("deepseek_v2", {}),
    "deepseek-v2, queries uncompressed": ("deepseek_v2", {"q_lora_rank": None}),
    "deepseek-v3": ("deepseek_v3", {}),
    "moonlight": (
        "deepseek_v3",
        {
            "q_lora_rank": None, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.446,
            "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_every_norm_has_the_epsilon_that_transformers_gives_it(name: str, epsilon: float, checkpoint, serve) -> None:
    family, changes = SETTINGS[name]
    folder = checkpoint(family, rms_norm_eps=epsilon, **changes)

    got = serve(folder).prompt_logits(IDS)

    assert_equal_logits(got, hf.reference_logits(folder, IDS))
