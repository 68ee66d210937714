"""The table of the embedding at every precision: 16 bits wherever the matrices have 16 or fewer."""

import ml_dtypes
import numpy as np
import pytest

from expertmesh_forge.errors import BadWeights
from expertmesh_forge.formats import encode_embedding

TABLE = np.random.default_rng(0).standard_normal((37, 64)).astype(np.float32)
CODES = ("int8", "int4")


def table_with(value: float) -> np.ndarray:
    table = TABLE.copy()
    table[5, 7] = value
    return table


def test_fp32_keeps_the_table_itself() -> None:
    assert encode_embedding(TABLE, "fp32") is TABLE


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_precisions_of_16_bits_have_a_table_of_their_own_type(precision, dtype) -> None:
    stored = encode_embedding(TABLE, precision)

    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored, TABLE.astype(dtype))


@pytest.mark.parametrize("precision", CODES)
@pytest.mark.parametrize("published", [np.float16, ml_dtypes.bfloat16])
def test_codes_lose_nothing_of_a_table_that_was_published_in_16_bits(precision, published) -> None:
    table = TABLE.astype(published).astype(np.float32)

    stored = encode_embedding(table, precision)

    assert stored.dtype == published
    np.testing.assert_array_equal(stored.astype(np.float32), table)


@pytest.mark.parametrize("precision", CODES)
@pytest.mark.parametrize("peak", [1.0, 65504.0, -65504.0])
def test_codes_have_any_other_table_in_fp16(precision, peak) -> None:
    assert encode_embedding(table_with(peak), precision).dtype == np.float16


@pytest.mark.parametrize("precision", CODES)
@pytest.mark.parametrize("peak", [65505.0, -1e6])
def test_codes_have_a_table_beyond_the_range_of_fp16_in_bf16(precision, peak) -> None:
    stored = encode_embedding(table_with(peak), precision)

    assert stored.dtype == ml_dtypes.bfloat16
    assert stored[5, 7] == np.float32(peak).astype(ml_dtypes.bfloat16)


def test_fp16_refuses_a_table_that_it_cannot_hold() -> None:
    with pytest.raises(BadWeights, match=r"the embedding has values up to 1e\+06, which fp16 cannot hold"):
        encode_embedding(table_with(-1e6), "fp16")


@pytest.mark.parametrize("precision", ["fp16", "bf16", *CODES])
def test_what_is_no_number_is_refused(precision) -> None:
    with pytest.raises(BadWeights, match="the embedding has values up to nan"):
        encode_embedding(table_with(np.nan), precision)
