"""Tensors of 8-bit floats with scales per block, as DeepSeek-V3 is published: torch says what they stand for."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from expertmesh_forge.errors import BadWeights, SourceError, UnsupportedModel
from expertmesh_forge.importing.checkpoint import Checkpoint, open_checkpoint
from expertmesh_forge.importing.fp8 import Fp8Blocks
from models.fp8_packing import CONFIG, Tensors, noise, quantised, spread


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
