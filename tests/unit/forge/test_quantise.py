import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from expertmesh_forge.errors import BadWeights, UnsupportedModel
from expertmesh_forge.quantise import dequantise_int4, dequantise_int8, quantise_int4, quantise_int8


def _matrix(rows, inner, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, inner)).astype(np.float32)


def test_codes_and_scales_mean_to_the_runtime_what_they_mean_here():
    weights, rows = _matrix(96, 64), _matrix(5, 64, seed=1)
    codes, scales = quantise_int4(weights)
    node = helper.make_node("MatMulNBits", ["rows", "q", "s"], ["out"], domain="com.microsoft",
                            K=64, N=96, bits=4, block_size=32)  # fmt: skip
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [5, 64])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [5, 96])],
        [helper.make_tensor("q", TensorProto.UINT8, codes.shape, codes.tobytes(), raw=True),
         helper.make_tensor("s", TensorProto.FLOAT, scales.shape, scales.tobytes(), raw=True)],
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)], ir_version=10
    )
    (found,) = ort.InferenceSession(model.SerializeToString()).run(None, {"rows": rows})
    np.testing.assert_allclose(found, rows @ dequantise_int4(codes, scales).T, atol=1e-4)


@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize(
    ("quantise", "dequantise"), [(quantise_int4, dequantise_int4), (quantise_int8, dequantise_int8)]
)
def test_quantising_loses_something_but_at_most_one_step(quantise, dequantise, block):
    weights = _matrix(64, 128)
    codes, scales = quantise(weights, block)
    error = np.abs(dequantise(codes, scales) - weights).reshape(64, -1, block)
    assert error.max() > 0
    assert (error <= np.abs(scales)[..., None] * 1.0001).all()
    assert np.median(error / np.abs(scales)[..., None]) < 0.5


@pytest.mark.parametrize(
    ("quantise", "dequantise"), [(quantise_int4, dequantise_int4), (quantise_int8, dequantise_int8)]
)
def test_a_matrix_that_is_already_quantised_stays_and_zeros_stay_zero(quantise, dequantise):
    once = dequantise(*quantise(_matrix(32, 64)))
    np.testing.assert_allclose(dequantise(*quantise(once)), once, atol=1e-6)
    assert not dequantise(*quantise(np.zeros((4, 32), np.float32))).any()


def test_an_asymmetric_grid_of_the_same_blocks_is_not_reproduced():
    # The source format has a scale and a minimum per 32 values; a re-quantiser that copied it would look lossless.
    random = np.random.default_rng(0)
    weights = (random.integers(0, 16, (16, 64)) * 0.1 - 0.3).astype(np.float32)
    assert np.abs(dequantise_int4(*quantise_int4(weights)) - weights).max() > 0


def test_sizes_and_values_that_cannot_be_quantised_are_refused():
    with pytest.raises(UnsupportedModel, match="multiple of 32, not 40"):
        quantise_int4(_matrix(4, 40))
    with pytest.raises(BadWeights, match="NaN"):
        quantise_int4(np.full((4, 32), np.nan, np.float32))
