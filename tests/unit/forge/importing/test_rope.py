"""Every kind of rotary scaling as data, against what transformers computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from expertmesh_forge.errors import UnsupportedModel
from expertmesh_forge.importing.config import CheckpointConfig
from expertmesh_forge.importing.rope import read_rope, rope_settings

DIM, CONTEXT = 32, 4096
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512},
    "yarn of deepseek": {
        "rope_type": "yarn", "factor": 40.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.7,
        "original_max_position_embeddings": 512,
    },
    "yarn of gpt-oss": {
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 512,
    },
    "yarn with a given factor": {
        "rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5, "original_max_position_embeddings": 512,
    },
    "longrope": {
        "rope_type": "longrope", "short_factor": [1.0 + i / 9 for i in range(DIM // 2)],
        "long_factor": [2.0 + i for i in range(DIM // 2)], "original_max_position_embeddings": 512,
    },
    "llama3 of llama 4": {
        "rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
        "original_max_position_embeddings": 512,
    },
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
}  # fmt: skip


def config_of(**values: object) -> CheckpointConfig:
    return CheckpointConfig(Path("config.json"), {"max_position_embeddings": CONTEXT, "rope_theta": 10000.0, **values})


def reference(scaling: dict[str, object], served: int) -> tuple[np.ndarray, float]:
    config = AutoConfig.for_model(
        "mixtral", hidden_size=4 * DIM, num_attention_heads=4, head_dim=DIM, max_position_embeddings=CONTEXT,
        rope_parameters={"rope_theta": 10000.0, **scaling},
    )  # fmt: skip
    frequencies, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"), seq_len=served)
    return frequencies.numpy(), factor


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("served", [256, CONTEXT])
def test_frequencies_and_factor_are_those_of_transformers(name: str, served: int) -> None:
    rope = read_rope(rope_settings(config_of(rope_parameters=SCALINGS[name]), DIM), served)

    frequencies, factor = reference(SCALINGS[name], served)
    np.testing.assert_allclose(rope.inverse_frequencies, frequencies, rtol=3e-7)
    assert rope.factor == pytest.approx(factor, rel=1e-12)


def test_plain_positions_are_powers_of_the_base() -> None:
    rope = read_rope(rope_settings(config_of(), DIM), CONTEXT)

    np.testing.assert_allclose(rope.inverse_frequencies, 10000.0 ** (-np.arange(0, DIM, 2) / DIM), rtol=3e-7)
    assert rope.factor == 1.0


def test_the_older_spelling_means_the_same() -> None:
    scaling = {key: value for key, value in SCALINGS["yarn of deepseek"].items() if key != "rope_type"}
    older = config_of(rope_scaling={**scaling, "type": "yarn"})

    assert rope_settings(older, DIM).kind == "yarn"
    assert read_rope(rope_settings(older, DIM), CONTEXT) == read_rope(
        rope_settings(config_of(rope_parameters=SCALINGS["yarn of deepseek"]), DIM), CONTEXT
    )


def test_scaling_that_was_added_by_hand_counts_more_than_what_was_saved() -> None:
    saved = {"rope_type": "default", "rope_theta": 10000.0}
    both = config_of(rope_parameters=saved, rope_scaling=SCALINGS["yarn"])

    assert read_rope(rope_settings(both, DIM), CONTEXT) == read_rope(
        rope_settings(config_of(rope_parameters=SCALINGS["yarn"]), DIM), CONTEXT
    )
    assert rope_settings(config_of(rope_parameters=SCALINGS["yarn"], rope_scaling=None), DIM).kind == "yarn"


def test_longrope_turns_by_the_factors_of_the_served_context() -> None:
    magnitudes = {"short_mscale": 1.25, "long_mscale": 1.5}
    settings = rope_settings(config_of(rope_parameters={**SCALINGS["longrope"], **magnitudes}), DIM)

    short, long = read_rope(settings, 512), read_rope(settings, 513)

    assert (short.factor, long.factor) == (1.25, 1.5)
    assert short.inverse_frequencies[-1] > long.inverse_frequencies[-1]


@pytest.mark.parametrize("scaling", [{"rope_type": "mrope"}, {"rope_type": "default", "partial_rotary_factor": 0.5}])
def test_what_is_not_known_is_refused(scaling) -> None:
    with pytest.raises(UnsupportedModel, match=r"mrope|partial_rotary_factor"):
        read_rope(rope_settings(config_of(rope_parameters=scaling), DIM), CONTEXT)
