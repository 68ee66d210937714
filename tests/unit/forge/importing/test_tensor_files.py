import ml_dtypes
import numpy as np
import pytest

from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.bundle.tensors import encode_tensors
from expertmesh_forge.bundling.tensor_files import put_tensors


def test_the_bytes_are_those_of_encoding_in_memory(tmp_path) -> None:
    random = np.random.default_rng(0)
    tensors = {
        "a": random.standard_normal((3, 5)).astype(np.float32),
        "turned": random.standard_normal((4, 6)).astype(np.float32).T,
        "codes": random.integers(0, 255, (7, 16), dtype=np.uint8),
        "half": np.ones(3, np.float16),
        "signed": np.ones(64, np.int8),
    }

    blob = put_tensors(BlobStore(tmp_path), tensors)

    assert BlobStore(tmp_path).verified(blob.digest).read_bytes() == encode_tensors(tensors)
    assert blob.size_bytes == len(encode_tensors(tensors))


def test_a_blob_that_is_there_already_stays_and_nothing_else_is_left(tmp_path) -> None:
    store = BlobStore(tmp_path)
    first, again = (put_tensors(store, {"a": np.ones(9, np.float32)}) for _ in range(2))

    assert first == again
    assert [path.name for path in store.folder.iterdir()] == [first.digest]


def test_an_interrupted_write_leaves_nothing(tmp_path) -> None:
    class Interrupting(dict):
        def values(self):
            yield np.ones(4, np.float32)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        put_tensors(BlobStore(tmp_path), Interrupting(a=np.ones(4, np.float32), b=np.ones(4, np.float32)))

    assert list((tmp_path / "sha256").iterdir()) == []


def test_a_tensor_larger_than_a_piece_is_whole(tmp_path) -> None:
    tensors = {
        "a": np.arange(3_000_001, dtype=np.float32),
        "b": np.ones(1, ml_dtypes.bfloat16).view(np.uint16).view("i1"),
    }

    blob = put_tensors(BlobStore(tmp_path), tensors)

    assert BlobStore(tmp_path).path(blob.digest).read_bytes() == encode_tensors(tensors)
