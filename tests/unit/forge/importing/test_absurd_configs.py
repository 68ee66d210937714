"""Sizes that cannot be, or that contradict each other or the tensors: refused by file and key before any work."""

import re
import shutil
import tracemalloc
from pathlib import Path

import pytest

from expertmesh_forge.errors import ForgeError
from expertmesh_forge.importing.importer import ImportRequest, import_checkpoint
from models.altered_checkpoints import alter_config, alter_tensors

NOT_A_NUMBER, ENDLESS = float("nan"), float("inf")
MOST_BYTES = 32 * 2**20  # a tiny checkpoint needs a few; a size that is believed needs gigabytes

ALONE = [
    ("hidden_size", 0, "at least 1, it is 0"),
    ("hidden_size", -64, "at least 1, it is -64"),
    ("hidden_size", 10**12, "at most 2147483647, it is 1000000000000"),
    ("hidden_size", "64", "an integer, it is '64'"),
    ("hidden_size", 64.0, "an integer, it is 64.0"),
    ("hidden_size", [64] * 1000, r"an integer, it is \[64, .*\.\.\.$"),
    ("num_hidden_layers", 0, "at least 1"),
    ("num_attention_heads", True, "an integer, it is True"),
    ("num_local_experts", 0, "at least 1"),
    ("num_experts_per_tok", 0, "at least 1"),
    ("max_position_embeddings", 10**12, "at most 2147483647"),
    ("sliding_window", -1, "at least 1"),
    ("rms_norm_eps", NOT_A_NUMBER, "finite in 32 bits, it is nan"),
    ("rms_norm_eps", ENDLESS, "finite in 32 bits, it is inf"),
    ("rms_norm_eps", 10**400, "finite in 32 bits, it is 1000"),
    ("rms_norm_eps", -1e-5, "above 0, it is -1e-05"),
    ("rms_norm_eps", "1e-5", "a number, it is '1e-5'"),
    ("quantization_config", "fp8", "an object, it is 'fp8'"),
    ("partial_rotary_factor", "half", "a number, it is 'half'"),
]
ROTARY = [
    ("rope_scaling", 0, "'rope_scaling' must be an object, it is 0"),
    ("rope_scaling", "", "'rope_scaling' must be an object, it is ''"),
    ("rope_scaling", "yarn", "'rope_scaling' must be an object, it is 'yarn'"),
    ("rope_scaling", [], r"'rope_scaling' must be an object, it is \[\]"),
    ("rope_scaling", {"rope_type": 3}, "'rope_type' must be a text"),
    ("rope_scaling", {"rope_type": "linear", "factor": "4"}, "'factor' must be a number, it is '4'"),
    ("rope_scaling", {"rope_type": "linear", "factor": 0}, "'factor' must be above 0"),
    ("rope_scaling", {"rope_type": "yarn", "factor": NOT_A_NUMBER}, "'factor' must be finite"),
    ("rope_scaling", {"rope_type": "yarn", "factor": 4.0, "beta_fast": 0}, "'beta_fast' must be above 0"),
    ("rope_scaling", {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1.0}, "rope_theta 1 and rope_type 'yarn'"),
    ("rope_scaling", {"rope_type": "linear", "factor": 1e-39}, "rope_theta .* every pair"),
    (
        "rope_scaling",
        {"rope_type": "longrope", "short_factor": [1.0] * 3},
        "'short_factor' must be a list of 8 numbers",
    ),
    ("rope_scaling", {"rope_type": "longrope", "short_factor": [0.0] * 8}, "rope_theta .* every pair"),
    ("rope_parameters", {"rope_theta": 0.0}, "'rope_theta' must be above 0"),
    ("rope_parameters", {"rope_theta": NOT_A_NUMBER}, "'rope_theta' must be finite"),
]
TOGETHER = [
    ("mixtral", {"num_experts_per_tok": 8}, "'num_experts_per_tok' must be at most num_local_experts 7, it is 8"),
    ("mixtral", {"num_key_value_heads": 3}, "'num_key_value_heads' must be a divisor of num_attention_heads 4"),
    ("mixtral", {"num_key_value_heads": 8}, "'num_key_value_heads' must be a divisor of num_attention_heads 4"),
    ("olmoe", {"num_attention_heads": 6}, "'hidden_size' must be a multiple of num_attention_heads 6"),
    ("olmoe", {"num_attention_heads": 128}, "'hidden_size' must be a multiple of num_attention_heads 128"),
    ("gpt_oss", {"layer_types": ["full_attention"] * 3}, "'layer_types' must be a list of num_hidden_layers 4 entries"),
    ("gpt_oss", {"layer_types": ["linear_attention"] * 4}, "'layer_types' must be a list of full_attention and"),
    ("llama4_text", {"no_rope_layers": [1]}, "'no_rope_layers' must be a list of num_hidden_layers 4 entries"),
    ("llama4_text", {"no_rope_layers": [True] * 4}, "'no_rope_layers' must be an integer or a list of integers"),
    ("deepseek_v3", {"n_group": 3}, "'n_group' must be a divisor of n_routed_experts 8"),
    ("deepseek_v3", {"topk_group": 5}, "'topk_group' must be at most n_group 4"),
    ("deepseek_v3", {"topk_group": 1}, "'topk_group' must be enough groups of 2 to pick 3 experts from"),
    ("deepseek_v3", {"topk_method": 3}, "'topk_method' must be a text, it is 3"),
    ("mixtral", {"quantization_config": {"quant_method": 8}}, "'quant_method' must be a text, it is 8"),
    (
        "mixtral",
        {"rope_theta": 2e6, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        r"rope_theta is 2e\+06, but 1e\+06 in 'rope_parameters'",
    ),
    ("deepseek_v3", {"n_shared_experts": -1}, "'n_shared_experts' must be at least 0"),
    ("deepseek_v2", {"first_k_dense_replace": -1}, "'first_k_dense_replace' must be at least 0"),
    ("phimoe", {"router_jitter_noise": -0.1}, "'router_jitter_noise' must be at least 0"),
    ("granitemoe", {"logits_scaling": 0.0}, "'logits_scaling' must be above 0"),
    ("granitemoe", {"embedding_multiplier": 1e300}, "'embedding_multiplier' must be finite in 32 bits"),
    ("granitemoeshared", {"shared_intermediate_size": -1}, "'shared_intermediate_size' must be at least 0"),
]
AGAINST_TENSORS = [
    ("mixtral", {"vocab_size": 301}, "embed_tokens.weight has shape .* says vocab_size 301$"),
    ("mixtral", {"vocab_size": 299}, "embed_tokens.weight has shape .* says vocab_size 299$"),
    ("mixtral", {"hidden_size": 2**30, "head_dim": None}, "embed_tokens.weight .* says hidden_size 1073741824$"),
    ("mixtral", {"num_hidden_layers": 10**9}, "'num_hidden_layers' must be 3, as many .* it is 1000000000"),
    ("mixtral", {"num_hidden_layers": 2}, "'num_hidden_layers' must be 3, as many"),
    ("deepseek_v3", {"num_hidden_layers": 2}, "'num_hidden_layers' must be 3, as many"),
    ("mixtral", {"head_dim": 2**28}, "q_proj.weight has shape .* head_dim 268435456, .*num_attention_heads 4"),
    ("mixtral", {"num_key_value_heads": 4}, "k_proj.weight has shape .* num_key_value_heads 4"),
    ("mixtral", {"num_local_experts": 10**9}, "gate.weight has shape .* says num_local_experts 1000000000$"),
    ("mixtral", {"intermediate_size": 2**30}, "w1.weight has shape .* says intermediate_size 1073741824$"),
    ("granitemoe", {"intermediate_size": 40}, "input_linear.weight has shape .* says intermediate_size 40$"),
    ("deepseek_v2", {"qk_rope_head_dim": 2**30}, "_proj.* has shape .* qk_rope_head_dim 1073741824"),
    ("deepseek_v2", {"kv_lora_rank": 2**30}, "kv_a_proj_with_mqa.weight has shape .* kv_lora_rank 1073741824"),
]  # fmt: skip


@pytest.fixture
def refused(checkpoint, tmp_path):
    """Import an altered checkpoint, which must fail early: the error's text."""

    def attempt(family: str, changes: dict[str, object]) -> str:
        folder = Path(shutil.copytree(checkpoint(family), tmp_path / "altered"))
        alter_config(folder, **changes)
        tracemalloc.start()
        try:
            with pytest.raises(ForgeError) as caught:
                import_checkpoint(ImportRequest(folder, tmp_path / "out" / "b", ("fp32",), "tiny"))
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak_bytes < MOST_BYTES
        assert not (tmp_path / "out").exists()
        assert str(folder / "config.json") in str(caught.value)
        return str(caught.value)

    return attempt


@pytest.mark.parametrize(("key", "value", "wanted"), ALONE)
def test_a_value_that_cannot_be_is_named_with_its_key(refused, key: str, value: object, wanted: str) -> None:
    assert re.search(f"'{key}' must be {wanted}", refused("mixtral", {key: value}))


@pytest.mark.parametrize(("key", "value", "words"), ROTARY)
def test_positions_that_cannot_be_computed_are_refused(refused, key: str, value: object, words: str) -> None:
    assert re.search(words, refused("mixtral", {key: value}))


@pytest.mark.parametrize(("family", "changes", "words"), TOGETHER)
def test_values_that_contradict_each_other_are_both_named(refused, family, changes, words: str) -> None:
    assert re.search(words, refused(family, changes))


@pytest.mark.parametrize(("family", "changes", "words"), AGAINST_TENSORS)
def test_a_size_that_the_tensors_do_not_have_is_named_with_its_key(refused, family, changes, words: str) -> None:
    assert re.search(words, refused(family, changes))


def test_a_number_of_more_digits_than_are_read_names_the_file(mixtral, tmp_path) -> None:
    (mixtral / "config.json").write_text(f'{{"hidden_size": 1{"0" * 5000}}}')

    with pytest.raises(ForgeError, match=r"config\.json is not valid JSON"):
        import_checkpoint(ImportRequest(mixtral, tmp_path / "b"))


def test_a_layer_that_predicts_a_further_token_is_no_layer_of_the_model(checkpoint, tmp_path) -> None:
    folder = Path(shutil.copytree(checkpoint("deepseek_v3"), tmp_path / "predicting"))

    def add_a_layer(tensors) -> None:
        last = {name: value for name, value in tensors.items() if name.startswith("model.layers.2.")}
        tensors.update({name.replace(".2.", ".3.", 1): value for name, value in last.items()})
        tensors["model.layers.3.eh_proj.weight"] = tensors["model.layers.2.input_layernorm.weight"]

    alter_tensors(folder, add_a_layer)

    made = import_checkpoint(ImportRequest(folder, tmp_path / "b", ("fp32",)))
    assert len(made.manifest.layers) == 3
