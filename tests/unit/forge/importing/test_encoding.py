import numpy as np
import pytest

from expertmesh_common.bundle.manifest import PRECISIONS
from expertmesh_forge.formats import encode_matrix
from expertmesh_forge.importing import encoding


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("block", [None, 32])
def test_slabs_give_what_the_whole_gives(precision, block, monkeypatch) -> None:
    weights = np.random.default_rng(0).standard_normal((37, 256)).astype(np.float32)
    want = encode_matrix("m", weights, precision, block)

    monkeypatch.setattr(encoding, "_SLAB_BYTES", 5 * 256 * 4)
    got = encoding.encode_in_slabs("m", weights, precision, block)

    assert list(got) == list(want)
    for key, value in want.items():
        assert got[key].dtype == value.dtype
        np.testing.assert_array_equal(got[key], value)


def test_a_row_longer_than_a_slab_is_a_slab_of_its_own(monkeypatch) -> None:
    monkeypatch.setattr(encoding, "_SLAB_BYTES", 16)
    weights = np.ones((3, 64), np.float32)

    np.testing.assert_array_equal(encoding.encode_in_slabs("m", weights, "fp32")["m"], weights.T)
