"""Reading a checkpoint folder: every dtype as float32, and what is wrong with a folder said by file and tensor."""

import json
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from expertmesh_forge.errors import BadWeights, ForgeError, SourceError, UnsupportedModel
from expertmesh_forge.importing.checkpoint import open_checkpoint

VALUES = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) / 7


def folder_of(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text('{"model_type": "mixtral"}')
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_is_read_as_the_float32_that_it_stands_for(tmp_path, dtype) -> None:
    source = open_checkpoint(folder_of(tmp_path / "c", {"a": VALUES.to(dtype), "b": torch.ones(3)}))

    got = source.read("a", (2, 3, 4))

    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, VALUES.to(dtype).float().numpy())


def test_one_item_of_a_fused_tensor_is_read_alone(tmp_path) -> None:
    source = open_checkpoint(folder_of(tmp_path / "c", {"a": VALUES.bfloat16()}))

    np.testing.assert_array_equal(source.read("a", (2, 3, 4), part=1), VALUES[1].bfloat16().float().numpy())


def test_shards_are_found_through_the_index(checkpoint) -> None:
    whole, cut = open_checkpoint(checkpoint()), open_checkpoint(checkpoint(shard="40KB"))

    assert len({tensor.file for tensor in cut.tensors.values()}) > 3
    assert set(whole.tensors) == set(cut.tensors)
    name, shape = "model.layers.1.self_attn.q_proj.weight", (64, 64)
    np.testing.assert_array_equal(whole.read(name, shape), cut.read(name, shape))


def test_the_digest_follows_config_and_weights(tmp_path) -> None:
    first = open_checkpoint(folder_of(tmp_path / "c", {"a": VALUES})).digest
    assert open_checkpoint(tmp_path / "c").digest == first
    (tmp_path / "c" / "config.json").write_text('{"model_type": "olmoe"}')
    assert open_checkpoint(tmp_path / "c").digest != first


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.int64])
def test_other_dtypes_are_refused_by_name(tmp_path, dtype) -> None:
    source = open_checkpoint(folder_of(tmp_path / "c", {"a": VALUES.to(dtype)}))

    with pytest.raises(
        UnsupportedModel, match=r"model.safetensors: tensor a is (F8_E5M2|I64); read are F32, F16, BF16"
    ):
        source.read("a", (2, 3, 4))


def test_packed_codes_are_no_weights_and_weights_no_codes(tmp_path) -> None:
    codes = {"codes_blocks": torch.full((3, 1, 16), 0x22, dtype=torch.uint8), "codes_scales": torch.ones(3, 1)}
    source = open_checkpoint(folder_of(tmp_path / "c", codes))

    with pytest.raises(UnsupportedModel, match="tensor codes_blocks is U8; read are F32"):
        source.read("codes_blocks", (3, 1, 16))
    with pytest.raises(UnsupportedModel, match="tensor codes_scales is F32; read are U8"):
        source.read_mxfp4("codes", (3, 32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_names_file_and_tensor(tmp_path, bad) -> None:
    values = VALUES.clone()
    values[1, 2, 3] = bad
    source = open_checkpoint(folder_of(tmp_path / "c", {"a": values.bfloat16()}))

    with pytest.raises(BadWeights, match=r"model.safetensors: tensor a holds NaN or infinity"):
        source.read("a", (2, 3, 4))


def test_missing_and_misshapen_tensors_are_named(tmp_path) -> None:
    source = open_checkpoint(folder_of(tmp_path / "c", {"a": VALUES}))

    with pytest.raises(BadWeights, match=r"tensor b is missing"):
        source.read("b", (2,))
    with pytest.raises(BadWeights, match=r"tensor a has shape \[2, 3, 4\], the config asks for \[2, 12\]"):
        source.read("a", (2, 12))


def test_a_shard_that_is_cut_short_is_named_with_its_tensor(tmp_path) -> None:
    path = folder_of(tmp_path / "c", {"a": VALUES}) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(SourceError, match=r"model.safetensors is cut short: tensor a ends at byte"):
        open_checkpoint(tmp_path / "c")


def test_a_shard_that_shrinks_while_it_is_read_is_an_error_not_an_end(tmp_path) -> None:
    path = folder_of(tmp_path / "c", {"a": VALUES}) / "model.safetensors"
    source = open_checkpoint(tmp_path / "c")
    path.write_bytes(path.read_bytes()[:-8])

    with pytest.raises(BadWeights, match=r"ended inside tensor a"):
        source.read("a", (2, 3, 4))


def with_header(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    "garbage",
    [
        b"", b"\x01", b"\xff" * 64, with_header(b"not json at all!"), b"<html>" * 9, with_header(b"[" * 200_000),
        with_header(b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}'),
    ],
    ids=["nothing", "a byte", "ones", "no JSON", "a web page", "without end", "infinite"],
)  # fmt: skip
def test_files_that_are_no_safetensors_are_refused(tmp_path, garbage: bytes) -> None:
    path = folder_of(tmp_path / "c", {"a": VALUES}) / "model.safetensors"
    path.write_bytes(garbage)

    with pytest.raises(SourceError, match=r"model.safetensors"):
        open_checkpoint(tmp_path / "c")


def _lose_a_shard(folder: Path) -> None:
    next(folder.glob("model-00002*.safetensors")).unlink()


def _swap_shards(folder: Path) -> None:
    def swap(index) -> None:
        files = index["weight_map"]
        files["lm_head.weight"] = files["model.layers.2.self_attn.q_proj.weight"]

    _edit_index(folder, swap)


def _empty(folder: Path) -> None:
    _edit_index(folder, lambda index: index.pop("weight_map"))


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text()[:100])


def _edit_index(folder: Path, edit) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_lose_a_shard, "00002.* cannot be read"),
        (_swap_shards, "holds the tensor lm_head.weight, but it does not"),
        (_empty, "has no weight_map"),
        (_cut, "not valid JSON"),
    ],
)
def test_a_broken_index_says_what_is_broken(checkpoint, tmp_path, damage, words: str) -> None:
    folder = Path(shutil.copytree(checkpoint(shard="40KB"), tmp_path / "c"))
    damage(folder)

    with pytest.raises(SourceError, match=words):
        open_checkpoint(folder)


@pytest.mark.parametrize("place", ["../other.safetensors", "/tmp/other.safetensors", "a/../b", "..", ".", "", 3, None])
def test_a_shard_outside_the_folder_is_refused_by_file_and_entry(checkpoint, tmp_path, place: object) -> None:
    folder = Path(shutil.copytree(checkpoint(shard="40KB"), tmp_path / "c"))
    shutil.copy(next(folder.glob("*.safetensors")), tmp_path / "other.safetensors")
    _edit_index(folder, lambda index: index["weight_map"].update({"lm_head.weight": place}))

    words = rf"model\.safetensors\.index\.json: lm_head\.weight lies in {re.escape(repr(place))}, which is no file name"
    with pytest.raises(SourceError, match=words):
        open_checkpoint(folder)


def test_folders_that_hold_no_checkpoint_say_what_is_missing(tmp_path) -> None:
    for match in ("not a folder", "config.json is missing"):
        with pytest.raises(SourceError, match=match):
            open_checkpoint(tmp_path / "c")
        (tmp_path / "c").mkdir(exist_ok=True)
    (tmp_path / "c" / "config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"neither model.safetensors nor model.safetensors.index.json"):
        open_checkpoint(tmp_path / "c")
    (tmp_path / "c" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"pytorch_model.bin is there, but only safetensors files are read"):
        open_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("text", ["[]", "{", "", "\x00", "[" * 200_000], ids=["[]", "{", "nothing", "0", "without end"])
def test_a_config_that_is_no_object_is_refused(tmp_path, text: str) -> None:
    folder_of(tmp_path / "c", {"a": VALUES})
    (tmp_path / "c" / "config.json").write_text(text)

    with pytest.raises(ForgeError, match=r"config.json"):
        open_checkpoint(tmp_path / "c")
