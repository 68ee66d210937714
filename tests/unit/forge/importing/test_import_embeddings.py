"""The embedding of an imported checkpoint: one table per precision, in the type that the precision gives it."""

import ml_dtypes
import numpy as np
import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import PRECISIONS
from expertmesh_common.bundle.tensors import read_tensors
from expertmesh_forge.importing.importer import ImportRequest, import_checkpoint
from expertmesh_forge.verifying import verify

BFLOAT16 = ml_dtypes.bfloat16
FORMS = {"fp32": np.float32, "fp16": np.float16, "bf16": BFLOAT16}


def bundle_of(folder, out) -> Bundle:
    import_checkpoint(ImportRequest(folder, out, PRECISIONS, "tiny"))
    return Bundle(out)


def embedding(bundle: Bundle, precision: str) -> np.ndarray:
    weights = bundle.manifest.trunk.segments[0].graphs[precision].weights
    return read_tensors(bundle.path(weights))["embed"]


@pytest.mark.parametrize(
    ("published", "of_codes"), [("float32", np.float16), ("float16", np.float16), ("bfloat16", BFLOAT16)]
)
def test_every_precision_has_its_own_form_and_the_bundle_loads(checkpoint, tmp_path, published, of_codes) -> None:
    bundle = bundle_of(checkpoint("mixtral", dtype=published), tmp_path / "b")

    exact = embedding(bundle, "fp32")
    for precision in PRECISIONS:
        stored, dtype = embedding(bundle, precision), FORMS.get(precision, of_codes)
        assert stored.dtype == dtype
        np.testing.assert_array_equal(stored, exact.astype(dtype))
    assert verify(bundle, lambda *_: None).problems == []


def test_a_multiplier_is_in_the_table_before_it_is_rounded(checkpoint, tmp_path) -> None:
    plain, tripled = (
        bundle_of(checkpoint("granitemoe", embedding_multiplier=times), tmp_path / str(times)) for times in (1.0, 3.0)
    )

    table = embedding(plain, "fp32") * np.float32(3)
    for precision, dtype in {**FORMS, "int8": np.float16, "int4": np.float16}.items():
        np.testing.assert_array_equal(embedding(tripled, precision), table.astype(dtype))
