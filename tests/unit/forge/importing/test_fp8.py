"""8-bit floats with scales per block, as DeepSeek-V3 and Qwen3 are published: torch says what they stand for."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_forge.errors import BadWeights, ForgeError, SourceError, UnsupportedModel
from expertmesh_forge.importing.checkpoint import Checkpoint, open_checkpoint
from expertmesh_forge.importing.fp8 import Fp8Blocks
from expertmesh_forge.importing.importer import ImportRequest, import_checkpoint
from models.altered_checkpoints import alter_config
from models.hf_checkpoints import write_text_files

CONFIG = {
    "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
}  # fmt: skip
LARGEST = 448  # of E4M3
Tensors = dict[str, torch.Tensor]


def spread(scales: torch.Tensor, shape: tuple[int, ...], block: tuple[int, int] = (128, 128)) -> torch.Tensor:
    """Every block's scale at every weight of the block."""
    rows, columns = shape[-2:]
    return scales.repeat_interleave(block[0], -2)[..., :rows, :].repeat_interleave(block[1], -1)[..., :columns]


def quantised(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a matrix, the largest of every block at the largest code."""
    scales = torch.stack([torch.stack([p.abs().max() for p in r.split(128, 1)]) for r in weights.split(128)]) / LARGEST
    return (weights / spread(scales, weights.shape)).to(torch.float8_e4m3fn), scales


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random) * torch.rand(shape[-1], generator=random) ** 4


def source_of(folder: Path, tensors: Tensors, **changes: object) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    config = {"model_type": "deepseek_v3", "quantization_config": {**CONFIG, **changes}}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder)


def bits(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint32)


@pytest.mark.parametrize("shape", [(256, 384), (300, 200), (128, 129), (257, 1), (5, 7)])
def test_weights_are_what_torch_dequantises_to_the_bit(tmp_path, shape: tuple[int, int]) -> None:
    codes, scales = quantised(noise(*shape))
    source = source_of(tmp_path / "c", {"a.weight": codes, "a.weight_scale_inv": scales})

    got = source.read("a.weight", shape)

    assert got.dtype == np.float32
    np.testing.assert_array_equal(bits(got), bits((codes.float() * spread(scales, shape)).numpy()))


def test_every_code_is_the_value_of_the_format() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    want = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()

    got = Fp8Blocks(128, 128).dequantise(codes, np.ones((1, 1), np.float32))

    assert np.isnan(want).sum() == 2
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got[want == 0]), np.signbit(want[want == 0]))


def test_blocks_have_the_size_that_the_config_says(tmp_path) -> None:
    codes, scales = noise(70, 50).to(torch.float8_e4m3fn), noise(5, 3, seed=1).exp()
    tensors = {"a.weight": codes, "a.weight_scale_inv": scales}
    source = source_of(tmp_path / "c", tensors, weight_block_size=[16, 24])

    want = codes.float() * spread(scales, (70, 50), (16, 24))
    np.testing.assert_array_equal(source.read("a.weight", (70, 50)), want.numpy())


def test_scales_may_be_bfloat16_and_the_format_unsaid(tmp_path) -> None:
    codes, scales = quantised(noise(130, 130))
    scales = scales.bfloat16()
    source = source_of(tmp_path / "c", {"a.weight": codes, "a.weight_scale_inv": scales}, fmt=None)

    want = codes.float() * spread(scales.float(), (130, 130))
    np.testing.assert_array_equal(source.read("a.weight", (130, 130)), want.numpy())


def test_one_item_of_a_fused_tensor_is_scaled_by_its_own_scales(tmp_path) -> None:
    codes, scales = noise(3, 130, 140).to(torch.float8_e4m3fn), noise(3, 2, 2, seed=1).exp()
    source = source_of(tmp_path / "c", {"experts.up": codes, "experts.up_scale_inv": scales})

    want = (codes.float() * spread(scales, (130, 140))).numpy()
    np.testing.assert_array_equal(source.read("experts.up", (3, 130, 140), part=1), want[1])
    np.testing.assert_array_equal(source.read("experts.up", (3, 130, 140)), want)


def test_unpacking_takes_little_more_than_what_it_gives() -> None:
    codes, scales = np.zeros((4096, 1024), np.uint8), np.ones((32, 8), np.float32)

    tracemalloc.start()
    try:
        given = Fp8Blocks(128, 128).dequantise(codes, scales)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 1.2 * given.nbytes


CODES, SCALES = quantised(noise(130, 140))
NO_SCALES = torch.ones(2, 2).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("tensors", "changes", "error", "words"),
    [
        ({"a.weight_scale_inv": None}, {}, BadWeights, "its scales a.weight_scale_inv are missing"),
        ({"a.weight_scale_inv": SCALES[:1]}, {}, BadWeights, r"scales a.weight_scale_inv have the shape \[1, 2\], .*"
         r"asks for \[2, 2\]"),
        ({}, {"weight_block_size": [64, 128]}, BadWeights, r"have the shape \[2, 2\], .* asks for \[3, 2\]"),
        ({"a.weight_scale_inv": NO_SCALES}, {}, UnsupportedModel, r"_scale_inv is F8_E4M3; read are F32, F16, BF16\."),
        ({"a.weight": CODES.float().to(torch.float8_e5m2)}, {}, UnsupportedModel, "is F8_E5M2; read are F32"),
        ({}, {"fmt": "e5m2"}, UnsupportedModel, "fmt 'e5m2', e4m3 is read"),
        ({}, {"quant_method": "fbgemm_fp8"}, UnsupportedModel, "quant_method 'fbgemm_fp8', fp8 is read"),
        ({}, {"quant_method": None}, UnsupportedModel, "quant_method None, fp8 is read"),
        ({}, {"weight_block_size": None}, UnsupportedModel, r"weight_block_size \[\], blocks of matrices are read"),
        ({}, {"weight_block_size": [128]}, UnsupportedModel, r"weight_block_size \[128\], blocks"),
        ({}, {"weight_block_size": [0, 128]}, UnsupportedModel, r"weight_block_size \[0, 128\], blocks"),
    ],
)  # fmt: skip
def test_what_is_scaled_otherwise_is_refused_by_file_and_tensor(tmp_path, tensors, changes, error, words: str) -> None:
    all_tensors = {"a.weight": CODES, "a.weight_scale_inv": SCALES, **tensors}
    source = source_of(tmp_path / "c", {k: v for k, v in all_tensors.items() if v is not None}, **changes)

    with pytest.raises(error, match=rf"model\.safetensors: tensor a\.weight.*{words}"):
        source.read("a.weight", (130, 140))


def test_vectors_have_no_blocks(tmp_path) -> None:
    source = source_of(tmp_path / "c", {"a.bias": CODES[0], "a.bias_scale_inv": SCALES[0]})

    with pytest.raises(UnsupportedModel, match=r"tensor a\.bias of shape \[140\] is F8_E4M3, .* matrices are read"):
        source.read("a.bias", (140,))


def test_a_config_of_another_kind_names_the_key(tmp_path) -> None:
    source = source_of(tmp_path / "c", {"a.weight": CODES}, weight_block_size="128x128")

    with pytest.raises(SourceError, match=r"config\.json: 'weight_block_size' must be an integer or a list"):
        source.read("a.weight", (130, 140))


def _a_code_that_is_none(tensors: Tensors) -> str:
    tensors["a.weight"].view(torch.uint8)[129, 139] = 0x7F
    return "tensor a.weight, times a.weight_scale_inv of model.safetensors, holds NaN or infinity"


def _a_scale_that_is_none(tensors: Tensors) -> str:
    tensors["a.weight_scale_inv"][1, 1] = torch.nan
    return "tensor a.weight_scale_inv holds NaN or infinity"


def _a_scale_too_large(tensors: Tensors) -> str:
    tensors["a.weight_scale_inv"][1, 1] = 1e38
    return "tensor a.weight, times a.weight_scale_inv of model.safetensors, holds NaN or infinity"


@pytest.mark.parametrize("damage", [_a_code_that_is_none, _a_scale_that_is_none, _a_scale_too_large])
def test_what_is_no_number_once_scaled_names_file_and_tensor(tmp_path, damage) -> None:
    tensors = {"a.weight": CODES.clone(), "a.weight_scale_inv": SCALES.clone()}
    words = damage(tensors)

    with pytest.raises(BadWeights, match=rf"c/model\.safetensors: {words}"):
        source_of(tmp_path / "c", tensors).read("a.weight", (130, 140))


# Matrices of several blocks, whole ones and others.
SIZES = {
    "deepseek_v3": {"hidden_size": 192, "intermediate_size": 320, "moe_intermediate_size": 160, "kv_lora_rank": 128},
    "deepseek_v2": {"hidden_size": 192, "intermediate_size": 320, "moe_intermediate_size": 160, "q_lora_rank": None},
    "qwen3_moe": {"hidden_size": 192, "intermediate_size": 320, "moe_intermediate_size": 160},
}


def published(checkpoint, folder: Path, family: str) -> tuple[Path, Path]:
    """A checkpoint in 8-bit floats, scales in a shard of their own, and one of what it stands for in float32."""
    source = checkpoint(family, **SIZES[family])
    plain = load_file(source / "model.safetensors")
    codes, scales = {}, {}
    for name, weights in plain.items():
        # All projections: of attention, dense blocks, routed and shared experts.
        if "_proj" in name and weights.ndim == 2:
            codes[name], scales[f"{name}_scale_inv"] = quantised(weights)
            plain[name] = codes[name].float() * spread(scales[f"{name}_scale_inv"], weights.shape)
    eight = _written(folder / "fp8", source, {"one": plain | codes, "two": scales})
    alter_config(eight, quantization_config=CONFIG)
    return eight, _written(folder / "fp32", source, {"one": plain})


def _written(folder: Path, source: Path, shards: dict[str, Tensors]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text((source / "config.json").read_text())
    write_text_files(folder)
    for file, tensors in shards.items():
        save_file(tensors, folder / f"{file}.safetensors")
    index = {name: f"{file}.safetensors" for file, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def imported(folder: Path, out: Path, on_progress=lambda *_: None) -> tuple[set[str], int]:
    """Digests of all blobs, and how many steps an earlier run had finished."""
    done = import_checkpoint(ImportRequest(folder, out, ("fp32", "int4"), "tiny"), on_progress)
    return {blob.digest for blob in Bundle(out).manifest.all_blobs()}, done.resumed_steps


@pytest.mark.parametrize("family", SIZES)
def test_an_fp8_checkpoint_gives_the_bundle_of_the_dequantised_one(checkpoint, tmp_path, family: str) -> None:
    eight, plain = published(checkpoint, tmp_path, family)
    assert sum(tensor.dtype == "F8_E4M3" for tensor in open_checkpoint(eight).tensors.values()) > 20

    assert imported(eight, tmp_path / "a") == imported(plain, tmp_path / "b")


def test_an_interrupted_import_of_fp8_goes_on_and_changed_scales_start_anew(checkpoint, tmp_path) -> None:
    eight, _ = published(checkpoint, tmp_path, "qwen3_moe")
    whole, _ = imported(eight, tmp_path / "whole")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "import" and done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        imported(eight, tmp_path / "b", stop)
    assert imported(eight, tmp_path / "b") == (whole, 2)

    with pytest.raises(KeyboardInterrupt):
        imported(eight, tmp_path / "b", stop)
    scales = load_file(eight / "two.safetensors")
    last = max(scales)
    save_file(scales | {last: 2 * scales[last]}, eight / "two.safetensors")
    changed, resumed = imported(eight, tmp_path / "b")
    assert resumed == 0
    assert changed != whole


def _lose_scales(folder: Path) -> str:
    scales = load_file(folder / "two.safetensors")
    name = "model.layers.2.mlp.experts.5.down_proj.weight"
    del scales[f"{name}_scale_inv"]
    save_file(scales, folder / "two.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"][f"{name}_scale_inv"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return rf"one\.safetensors: tensor {name} of shape .* its scales {name}_scale_inv are missing"


def _say_another_format(folder: Path) -> str:
    alter_config(folder, quantization_config={**CONFIG, "fmt": "e5m2"})
    return r"one\.safetensors: tensor model\.layers\.0\..*_proj\.weight .* fmt 'e5m2', e4m3 is read"


def _say_nothing(folder: Path) -> str:
    alter_config(folder, quantization_config=None)
    return r"one\.safetensors: tensor model\.layers\.0\..*_proj\.weight .* quant_method None, fp8 is read"


@pytest.mark.parametrize("damage", [_lose_scales, _say_another_format, _say_nothing])
def test_what_cannot_be_scaled_is_said_before_anything_is_written(checkpoint, tmp_path, damage) -> None:
    eight, _ = published(checkpoint, tmp_path, "qwen3_moe")
    words = damage(eight)

    with pytest.raises(ForgeError, match=words):
        imported(eight, tmp_path / "out" / "b")
    assert not (tmp_path / "out").exists()


def test_scales_of_a_tensor_that_has_no_8_bit_floats_are_not_left_out_silently(checkpoint, tmp_path) -> None:
    eight, _ = published(checkpoint, tmp_path, "qwen3_moe")
    tensors = load_file(eight / "one.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].float()}, eight / "one.safetensors")

    with pytest.raises(UnsupportedModel, match=f"1 tensors belong to no part .* first {name}_scale_inv"):
        imported(eight, tmp_path / "b")
