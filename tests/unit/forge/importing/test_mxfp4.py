import numpy as np
import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from expertmesh_forge.errors import BadWeights
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


def test_a_scale_that_is_no_number_is_refused() -> None:
    with pytest.raises(BadWeights, match="scale 255"):
        dequantise_mxfp4(np.zeros((1, 1, 16), np.uint8), np.array([[255]], np.uint8))
