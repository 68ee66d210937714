"""What is wrong with a GGUF file is said at once, with the file and the tensor, and nothing is written."""

import gguf
import numpy as np
import pytest

from expertmesh_forge.errors import BadWeights, ForgeError, SourceError, UnsupportedModel
from expertmesh_forge.importing.importer import ImportRequest, import_checkpoint
from models import tiny_gguf
from models.moe_gguf import write_moe_gguf


@pytest.fixture
def refused(tmp_path):
    """Import into an empty folder; it stays empty."""

    def run(source, error: type[ForgeError], match: str) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        with pytest.raises(error, match=match):
            import_checkpoint(ImportRequest(source, tmp_path / "out" / "bundle", ("fp32",)))
        assert list((tmp_path / "out").iterdir()) == []

    return run


def altered(checkpoint, tmp_path, alter, family="mixtral", **options):
    return write_moe_gguf(tmp_path / "model.gguf", checkpoint(family), alter=alter, **options)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("mixtral", "blk.2.ffn_gate_inp.weight"), ("mixtral", "blk.0.ffn_up_exps.weight"),
        ("mixtral", "output_norm.weight"), ("mixtral", "blk.1.attn_v.weight"),
        ("qwen2_moe", "blk.3.ffn_gate_inp_shexp.weight"), ("qwen2_moe", "blk.0.ffn_up.weight"),
        ("qwen3_moe", "blk.2.attn_k_norm.weight"),
    ],
)  # fmt: skip
def test_a_missing_tensor_is_named(family, name, checkpoint, refused, tmp_path) -> None:
    path = altered(checkpoint, tmp_path, lambda tensors: tensors.pop(name), family)

    refused(path, BadWeights, rf"model\.gguf: tensor {name} is missing")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blk.1.attn_output.weight", (64, 96)), ("blk.0.ffn_gate_inp.weight", (6, 64)),
        ("token_embd.weight", (299, 64)),
    ],
)  # fmt: skip
def test_a_tensor_of_the_wrong_shape_is_named(name, shape, checkpoint, refused, tmp_path) -> None:
    path = altered(checkpoint, tmp_path, lambda tensors: tensors.update({name: np.ones(shape, np.float32)}))

    refused(path, BadWeights, rf"model\.gguf: tensor {name} has shape \[{shape[0]}, {shape[1]}\]")


def test_a_stack_of_too_few_or_too_narrow_experts_is_named(checkpoint, refused, tmp_path) -> None:
    name = "blk.1.ffn_down_exps.weight"

    few = altered(checkpoint, tmp_path, lambda tensors: tensors.update({name: tensors[name][:5]}))
    refused(few, BadWeights, r"blk\.1\.ffn_down_exps\.weight has shape \[5, 64, 32\], not one matrix for each of 7")

    narrow = altered(checkpoint, tmp_path, lambda tensors: tensors.update({name: tensors[name][:, :, :16].copy()}))
    refused(narrow, BadWeights, r"model\.gguf: tensor blk\.1\.ffn_down_exps\.weight\[0\] has shape \[64, 16\]")


def test_weights_that_are_no_numbers_are_named(checkpoint, refused, tmp_path) -> None:
    def damage(tensors):
        tensors["token_embd.weight"][3, 4] = np.inf

    with pytest.raises(BadWeights, match=r"model\.gguf: tensor 'token_embd\.weight' holds NaN"):
        import_checkpoint(ImportRequest(altered(checkpoint, tmp_path, damage), tmp_path / "bundle", ("fp32",)))
    assert not (tmp_path / "bundle").exists()


def test_a_truncated_file_says_so(checkpoint, refused, tmp_path) -> None:
    path = altered(checkpoint, tmp_path, lambda tensors: None)
    whole = path.read_bytes()
    for size in (0, 3, 20, 900, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path, SourceError, r"model\.gguf.*(truncated|not a GGUF)")


def test_a_missing_file_and_a_missing_part_are_named(checkpoint, refused, tmp_path) -> None:
    refused(tmp_path / "none.gguf", SourceError, r"no such model file: .*none\.gguf")

    write_moe_gguf(tmp_path / "cut.gguf", checkpoint(), split_tensors=9)
    (tmp_path / "cut-00003-of-00004.gguf").unlink()
    refused(tmp_path / "cut-00001-of-00004.gguf", SourceError, r"no such model file: .*cut-00003-of-00004\.gguf")

    (tmp_path / "cut-00001-of-00004.gguf").rename(tmp_path / "part.gguf")
    refused(tmp_path / "part.gguf", SourceError, r"part\.gguf is one of 4 parts of a model")


def test_unknown_architectures_and_dense_models_are_refused(checkpoint, refused, tmp_path) -> None:
    unknown = altered(checkpoint, tmp_path, lambda tensors: None, gguf_architecture="dbrx")
    refused(unknown, UnsupportedModel, r"model\.gguf: architecture 'dbrx'.* llama, olmoe, qwen2moe, qwen3moe")

    dense = tiny_gguf.write_gguf(tmp_path / "dense.gguf")
    refused(dense, UnsupportedModel, r"dense\.gguf is a dense model.*model convert")


def test_tensors_that_no_part_of_the_family_knows_are_not_left_out_silently(checkpoint, refused, tmp_path) -> None:
    path = altered(checkpoint, tmp_path, lambda tensors: tensors.update({"rope_freqs.weight": np.ones(8, np.float32)}))

    refused(path, UnsupportedModel, r"model\.gguf: 1 tensors belong to no part .* rope_freqs\.weight")


@pytest.mark.parametrize(
    "setting",
    [
        ("expert_gating_func is 2", "add_expert_gating_func", gguf.ExpertGatingFuncType.SIGMOID),
        ("expert_weights_scale is 2.5", "add_expert_weights_scale", 2.5),
        ("rope.dimension_count is 8", "add_rope_dimension_count", 8),
        ("RoPE scaling 'longrope'", "add_rope_scaling_type", gguf.RopeScalingType.LONGROPE),
        ("tokenizer 'rwkv'", "add_tokenizer_model", "rwkv"),
    ],
)
def test_settings_that_would_be_served_wrongly_are_refused(setting, checkpoint, refused, tmp_path) -> None:
    key, add, value = setting

    def adjust(writer):
        writer.kv_data[0].pop("tokenizer.ggml.model" if "tokenizer" in add else "", None)
        getattr(writer, add)(value)

    refused(altered(checkpoint, tmp_path, lambda tensors: None, adjust=adjust), UnsupportedModel, key)


@pytest.mark.parametrize(("key", "value"), [("block_count", 2**32 - 1), ("attention.head_count", 0)])
def test_sizes_that_cannot_be_are_refused_at_once(key, value, checkpoint, refused, tmp_path) -> None:
    def adjust(writer):
        writer.kv_data[0][f"qwen3moe.{key}"].value = value

    path = altered(checkpoint, tmp_path, lambda tensors: None, "qwen3_moe", adjust=adjust)

    refused(path, SourceError, rf"model\.gguf is damaged, its {key} is {value}; download it again")


def test_windows_of_some_layers_only_are_refused(checkpoint, refused, tmp_path) -> None:
    path = altered(
        checkpoint, tmp_path, lambda tensors: None, "qwen3_moe", adjust=lambda writer: writer.add_sliding_window(12)
    )

    refused(path, UnsupportedModel, "which layers have a sliding window")


def test_formats_that_are_not_dequantised_are_refused_by_tensor(checkpoint, refused, tmp_path) -> None:
    path = altered(checkpoint, tmp_path, lambda tensors: None, adjust=_with_whole_numbers)

    refused(path, UnsupportedModel, r"model\.gguf: tensor counts\.weight is I32, which is not read")


def _with_whole_numbers(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("counts.weight", np.ones((2, 32), np.int32))
