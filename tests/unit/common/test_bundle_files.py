"""Blobs, tensor files and manifests: what is written comes back, what is broken is refused by name."""

import copy
import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import deserialize
from safetensors.numpy import load

from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.bundle.manifest import parse_manifest, read_manifest
from expertmesh_common.bundle.tensors import ALIGNMENT, encode_tensors, read_tensors, read_views
from expertmesh_common.errors import CorruptData, InvalidInput, NotHere
from models.tiny_bundle import make_tiny_bundle


@pytest.fixture
def tensors():
    return {"a": np.arange(7, dtype=np.float32), "b": np.ones((3, 5), np.uint8), "c": np.zeros((0, 4), np.float32)}


def test_tensors_come_back_as_they_were_and_lie_on_aligned_offsets(tmp_path, tensors):
    path = tmp_path / "x"
    path.write_bytes(encode_tensors(tensors))

    assert all(view.offset % ALIGNMENT == 0 for view in read_views(path).values())
    for name, value in read_tensors(path).items():
        np.testing.assert_array_equal(tensors[name], value)


def test_the_files_are_plain_safetensors(tensors):
    loaded = load(encode_tensors(tensors, {"kind": "test"}))

    for name, value in tensors.items():
        np.testing.assert_array_equal(value, loaded[name])


@pytest.mark.parametrize(("dtype", "known_as"), [(np.float16, "F16"), (ml_dtypes.bfloat16, "BF16")])
def test_halves_come_back_and_other_readers_know_them(tmp_path, dtype, known_as):
    value = np.arange(-6, 6, dtype=np.float32).reshape(3, 4).astype(dtype)
    data = encode_tensors({"half": value})
    (tmp_path / "x").write_bytes(data)

    found = read_tensors(tmp_path / "x")["half"]

    assert found.dtype == value.dtype
    np.testing.assert_array_equal(found.astype(np.float32), value.astype(np.float32))
    assert [(name, raw["dtype"]) for name, raw in deserialize(data) if name == "half"] == [("half", known_as)]


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=9), elements=st.floats(width=32, allow_nan=False)))
def test_any_float_array_survives(value):
    np.testing.assert_array_equal(load(encode_tensors({"v": value}))["v"], value)


@pytest.mark.parametrize("keep", [0, 4, 9, 60, 200])
def test_a_cut_file_is_refused(tmp_path, tensors, keep):
    path = tmp_path / "x"
    path.write_bytes(encode_tensors(tensors)[:keep])

    with pytest.raises(CorruptData):
        read_views(path)


@given(st.binary(max_size=300))
def test_random_bytes_are_never_more_than_corrupt_data(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "x"
    path.write_bytes(data)

    with pytest.raises(CorruptData):
        read_views(path)


def test_a_blob_has_the_name_of_its_content(tmp_path):
    store = BlobStore(tmp_path)
    blob = store.put(b"weights")

    assert store.verified(blob.digest).read_bytes() == b"weights"
    assert [p.name for p in store.folder.iterdir()] == [blob.digest]


def test_a_changed_blob_is_found_out(tmp_path):
    store = BlobStore(tmp_path)
    blob = store.put(b"weights")
    store.path(blob.digest).write_bytes(b"weightz")

    with pytest.raises(CorruptData, match=blob.digest):
        store.verified(blob.digest)


def test_a_missing_blob_is_named(tmp_path):
    with pytest.raises(NotHere, match="0" * 64):
        BlobStore(tmp_path).verified("0" * 64)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_digest_can_never_leave_the_folder(tmp_path, digest):
    with pytest.raises(InvalidInput):
        BlobStore(tmp_path).path(digest)


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path):
    with pytest.raises(NotHere, match="expertmesh model convert"):
        read_manifest(tmp_path)


def test_a_newer_schema_asks_for_an_upgrade():
    with pytest.raises(InvalidInput, match=r"schema version 9.*upgrade"):
        parse_manifest('{"schema_version": 9}', "m")


def test_a_bad_field_is_named():
    with pytest.raises(CorruptData, match="name"):
        parse_manifest('{"schema_version": 1, "name": "/"}', "m")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> dict:
    return json.loads((make_tiny_bundle(tmp_path_factory.mktemp("tiny")) / "manifest.json").read_text())


def twice(manifest):
    manifest["layers"][1]["index"] = 0


def fewer_segments(manifest):
    manifest["trunk"]["segments"].pop()


def a_lost_expert(manifest):
    manifest["layers"][0]["experts"].pop(1)


def a_lost_neuron(manifest):
    manifest["layers"][0]["total_width"] += 1


def no_threshold(manifest):
    manifest["layers"][0]["gate"]["threshold"] = None


def crossed_limits(manifest):
    manifest["layers"][0]["gate"]["min_k"] = 9


def an_unknown_end(manifest):
    manifest["tokenizer"]["eos_ids"] = [300]


@pytest.mark.parametrize(
    ("breaking", "said"),
    [
        (twice, "not numbered"),
        (fewer_segments, "segments 0 to 3"),
        (a_lost_expert, "experts of layer 0"),
        (a_lost_neuron, "total_width"),
        (no_threshold, "needs a threshold"),
        (crossed_limits, "min_k 9"),
        (an_unknown_end, "token 300"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_with_the_reason(manifest, breaking, said):
    parse_manifest(json.dumps(manifest), "m")
    broken = copy.deepcopy(manifest)
    breaking(broken)

    with pytest.raises(CorruptData, match=said):
        parse_manifest(json.dumps(broken), "m")
