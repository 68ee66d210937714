"""Checkpoints in 8-bit floats: the bundle of the same one in float32, or refused before a file is written."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_forge.errors import ForgeError, UnsupportedModel
from expertmesh_forge.importing.checkpoint import open_checkpoint
from expertmesh_forge.importing.importer import ImportRequest, import_checkpoint
from models.altered_checkpoints import alter_config
from models.fp8_packing import CONFIG, Tensors, quantised, spread
from models.hf_checkpoints import write_text_files

# Matrices of several blocks, whole ones and others.
SIZES = {
    "deepseek_v3": {"hidden_size": 192, "intermediate_size": 320, "moe_intermediate_size": 160, "kv_lora_rank": 128},
    "deepseek_v2": {"hidden_size": 192, "intermediate_size": 320, "moe_intermediate_size": 160, "q_lora_rank": None},
    "qwen3_moe": {"hidden_size": 192, "intermediate_size": 320, "moe_intermediate_size": 160},
}


def published(checkpoint, folder: Path, family: str) -> tuple[Path, Path]:
    """A checkpoint in 8-bit floats, scales in a shard of their own, and one of what it stands for in float32."""
    source = checkpoint(family, **SIZES[family])
    plain = load_file(source / "model.safetensors")
    codes, scales = {}, {}
    for name, weights in plain.items():
        # All projections: of attention, dense blocks, routed and shared experts.
        if "_proj" in name and weights.ndim == 2:
            codes[name], scales[f"{name}_scale_inv"] = quantised(weights)
            plain[name] = codes[name].float() * spread(scales[f"{name}_scale_inv"], weights.shape)
    eight = _written(folder / "fp8", source, {"one": plain | codes, "two": scales})
    alter_config(eight, quantization_config=CONFIG)
    return eight, _written(folder / "fp32", source, {"one": plain})


def _written(folder: Path, source: Path, shards: dict[str, Tensors]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text((source / "config.json").read_text())
    write_text_files(folder)
    for file, tensors in shards.items():
        save_file(tensors, folder / f"{file}.safetensors")
    index = {name: f"{file}.safetensors" for file, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def imported(folder: Path, out: Path, on_progress=lambda *_: None) -> tuple[set[str], int]:
    """Digests of all blobs, and how many steps an earlier run had finished."""
    done = import_checkpoint(ImportRequest(folder, out, ("fp32", "int4"), "tiny"), on_progress)
    return {blob.digest for blob in Bundle(out).manifest.all_blobs()}, done.resumed_steps


@pytest.mark.parametrize("family", SIZES)
def test_an_fp8_checkpoint_gives_the_bundle_of_the_dequantised_one(checkpoint, tmp_path, family: str) -> None:
    eight, plain = published(checkpoint, tmp_path, family)
    assert sum(tensor.dtype == "F8_E4M3" for tensor in open_checkpoint(eight).tensors.values()) > 20

    assert imported(eight, tmp_path / "a") == imported(plain, tmp_path / "b")


def test_an_interrupted_import_of_fp8_goes_on_and_changed_scales_start_anew(checkpoint, tmp_path) -> None:
    eight, _ = published(checkpoint, tmp_path, "qwen3_moe")
    whole, _ = imported(eight, tmp_path / "whole")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "import" and done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        imported(eight, tmp_path / "b", stop)
    assert imported(eight, tmp_path / "b") == (whole, 2)

    with pytest.raises(KeyboardInterrupt):
        imported(eight, tmp_path / "b", stop)
    scales = load_file(eight / "two.safetensors")
    last = max(scales)
    save_file(scales | {last: 2 * scales[last]}, eight / "two.safetensors")
    changed, resumed = imported(eight, tmp_path / "b")
    assert resumed == 0
    assert changed != whole


def _lose_scales(folder: Path) -> str:
    scales = load_file(folder / "two.safetensors")
    name = "model.layers.2.mlp.experts.5.down_proj.weight"
    del scales[f"{name}_scale_inv"]
    save_file(scales, folder / "two.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"][f"{name}_scale_inv"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return rf"one\.safetensors: tensor {name} of shape .* its scales {name}_scale_inv are missing"


def _say_another_format(folder: Path) -> str:
    alter_config(folder, quantization_config={**CONFIG, "fmt": "e5m2"})
    return r"one\.safetensors: tensor model\.layers\.0\..*_proj\.weight .* fmt 'e5m2', e4m3 is read"


def _say_nothing(folder: Path) -> str:
    alter_config(folder, quantization_config=None)
    return r"one\.safetensors: tensor model\.layers\.0\..*_proj\.weight .* quant_method None, fp8 is read"


@pytest.mark.parametrize("damage", [_lose_scales, _say_another_format, _say_nothing])
def test_what_cannot_be_scaled_is_said_before_anything_is_written(checkpoint, tmp_path, damage) -> None:
    eight, _ = published(checkpoint, tmp_path, "qwen3_moe")
    words = damage(eight)

    with pytest.raises(ForgeError, match=words):
        imported(eight, tmp_path / "out" / "b")
    assert not (tmp_path / "out").exists()


def test_scales_of_a_tensor_that_has_no_8_bit_floats_are_not_left_out_silently(checkpoint, tmp_path) -> None:
    eight, _ = published(checkpoint, tmp_path, "qwen3_moe")
    tensors = load_file(eight / "one.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].float()}, eight / "one.safetensors")

    with pytest.raises(UnsupportedModel, match=f"1 tensors belong to no part .* first {name}_scale_inv"):
        imported(eight, tmp_path / "b")
