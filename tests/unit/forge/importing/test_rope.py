"""Every kind of rotary scaling as data, against what transformers computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from expertmesh_forge.errors import SourceError, UnsupportedModel
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


def without_theta(**values: object) -> CheckpointConfig:
    """A config as it is saved now: its theta is among the rope parameters, and the family's own one lies under it."""
    return CheckpointConfig(Path("config.json"), {"max_position_embeddings": CONTEXT, **values}).over(
        {"rope_theta": 10000.0}
    )


def test_scaling_that_was_added_by_hand_scales_the_saved_theta() -> None:
    saved = {"rope_type": "default", "rope_theta": 1e6}
    by_hand = without_theta(rope_parameters=saved, rope_scaling=SCALINGS["yarn"])

    settings = rope_settings(by_hand, DIM)

    assert (settings.kind, settings.base) == ("yarn", 1e6)
    meant = without_theta(rope_parameters={**SCALINGS["yarn"], "rope_theta": 1e6})
    assert read_rope(settings, CONTEXT) == read_rope(rope_settings(meant, DIM), CONTEXT)


def test_a_theta_beside_the_scaling_counts_if_it_contradicts_no_saved_one() -> None:
    saved, scaling = {"rope_type": "default", "rope_theta": 1e6}, SCALINGS["yarn"]

    own = without_theta(rope_parameters=saved, rope_scaling={**scaling, "rope_theta": 5e5})
    same = without_theta(rope_parameters=saved, rope_scaling=scaling, rope_theta=1e6)
    alone = without_theta(rope_scaling=scaling, rope_theta=2e6)
    assert [rope_settings(each, DIM).base for each in (own, same, alone)] == [5e5, 1e6, 2e6]
    assert rope_settings(without_theta(rope_scaling=scaling), DIM).base == 10000.0


def test_two_thetas_of_which_the_scaling_says_none_are_refused() -> None:
    saved = {"rope_type": "default", "rope_theta": 1e6}
    both = without_theta(rope_parameters=saved, rope_scaling=SCALINGS["yarn"], rope_theta=10000.0)

    words = r"rope_theta is 10000, but 1e\+06 in 'rope_parameters', .* put the right rope_theta into 'rope_scaling'"
    with pytest.raises(SourceError, match=words):
        rope_settings(both, DIM)


def test_the_older_name_of_longrope_means_the_same() -> None:
    fields = {key: value for key, value in SCALINGS["longrope"].items() if key != "rope_type"}
    older, newer = config_of(rope_scaling={**fields, "type": "su"}), config_of(rope_parameters=SCALINGS["longrope"])

    assert rope_settings(older, DIM).kind == "longrope"
    for served in (256, CONTEXT):
        assert read_rope(rope_settings(older, DIM), served) == read_rope(rope_settings(newer, DIM), served)


def test_longrope_turns_by_the_factors_of_the_served_context() -> None:
    magnitudes = {"short_mscale": 1.25, "long_mscale": 1.5}
    settings = rope_settings(config_of(rope_parameters={**SCALINGS["longrope"], **magnitudes}), DIM)

    short, long = read_rope(settings, 512), read_rope(settings, 513)

    assert (short.factor, long.factor) == (1.25, 1.5)
    assert short.inverse_frequencies[-1] > long.inverse_frequencies[-1]


def test_a_kind_that_is_not_known_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="rope type 'mrope' is not supported"):
        read_rope(rope_settings(config_of(rope_parameters={"rope_type": "mrope"}), DIM), CONTEXT)


PARTS = {
    "at the top": {"partial_rotary_factor": 0.5},
    "in rope_parameters": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    "in rope_scaling": {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
    "in what was saved": {
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}, "rope_scaling": SCALINGS["yarn"],
    },
}  # fmt: skip


@pytest.mark.parametrize("where", PARTS)
def test_heads_that_turn_in_part_are_refused(where: str) -> None:
    with pytest.raises(UnsupportedModel, match="partial_rotary_factor other than 1 is not supported"):
        rope_settings(config_of(**PARTS[where]), DIM)


def test_heads_that_are_said_to_turn_whole_do() -> None:
    whole = config_of(partial_rotary_factor=1, rope_parameters={"rope_type": "default", "partial_rotary_factor": 1.0})

    assert rope_settings(whole, DIM).base == rope_settings(config_of(), DIM).base


@pytest.mark.parametrize("section", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("global_layers", [None, {"rope_type": "default", "rope_theta": 1e6}])
def test_positions_per_layer_type_are_refused(section: str, global_layers: object) -> None:
    nested = {"full_attention": global_layers, "sliding_attention": None}

    words = r"rope parameters per layer type \(full_attention, sliding_attention\) are not supported"
    with pytest.raises(UnsupportedModel, match=words):
        rope_settings(config_of(**{section: nested}), DIM)
