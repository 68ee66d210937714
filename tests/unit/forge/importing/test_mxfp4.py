import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from expertmesh_forge.errors import BadWeights
from expertmesh_forge.importing.checkpoint import open_checkpoint
from expertmesh_forge.importing.mxfp4 import dequantise_mxfp4


def test_packed_experts_are_what_transformers_unpacks() -> None:
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (2, 6, 3, 16), dtype=np.uint8)
    scales = random.integers(110, 140, (2, 6, 3), dtype=np.uint8)

    got = np.stack([dequantise_mxfp4(codes[e], scales[e]) for e in range(2)])

    want = convert_moe_packed_tensors(torch.from_numpy(codes), torch.from_numpy(scales), dtype=torch.float32)
    np.testing.assert_array_equal(got, want.numpy().swapaxes(1, 2))  # there [in, out]


def test_all_sixteen_codes_are_the_values_of_the_format() -> None:
    codes = (np.arange(0, 16, 2, dtype=np.uint8) | (np.arange(1, 16, 2, dtype=np.uint8) << 4)).reshape(1, 1, 8)
    codes = np.concatenate([codes, codes], axis=2)

    got = dequantise_mxfp4(codes, np.array([[128]], np.uint8))

    half = [0, 1, 2, 3, 4, 6, 8, 12]
    assert got[0, :16].tolist() == [*half, *[-value for value in half]]


@pytest.mark.parametrize("scale", [254, 255])
def test_what_is_no_number_once_unpacked_names_file_and_tensors(tmp_path, scale: int) -> None:
    codes, scales = np.zeros((2, 3, 1, 16), np.uint8), np.full((2, 3, 1), 127, np.uint8)
    codes[1, 2, 0, 7], scales[1, 2, 0] = 0x60, scale  # 4 times 2^127
    save_file({"up_blocks": codes, "up_scales": scales}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    source = open_checkpoint(tmp_path)

    words = r"model\.safetensors: tensor up_blocks, times up_scales of model\.safetensors, holds NaN or infinity"
    with pytest.raises(BadWeights, match=words):
        source.read_mxfp4("up", (2, 3, 32), part=1)
    assert not source.read_mxfp4("up", (2, 3, 32), part=0).any()


def test_the_largest_and_smallest_scales_are_exact() -> None:
    codes = np.zeros((2, 1, 16), np.uint8)
    codes[:, 0, 0] = 0x91  # 0.5, then -0.5

    got = dequantise_mxfp4(codes, np.array([[0], [254]], np.uint8))

    assert got[:, :2].tolist() == [[2.0**-128, -(2.0**-128)], [2.0**126, -(2.0**126)]]
