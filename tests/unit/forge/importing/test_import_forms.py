"""The forms in which one model is published give one bundle: fused or not, packed or not, alone or inside another."""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.torch import load_file as load_torch

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.tensors import read_tensors
from expertmesh_forge.importing.importer import ImportRequest, import_checkpoint
from expertmesh_forge.importing.mxfp4 import dequantise_mxfp4
from models.altered_checkpoints import Tensors, alter_tensors


def bundle_of(folder: Path, out: Path) -> Bundle:
    import_checkpoint(ImportRequest(folder, out, ("fp32",), "tiny"))
    return Bundle(out)


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def test_published_and_fused_names_give_the_same_bundle(checkpoint, tmp_path) -> None:
    for family in ("mixtral", "qwen3_moe", "granitemoe", "granitemoeshared", "phimoe", "deepseek_v2"):
        bundles = [
            bundle_of(checkpoint(family, fused=fused), tmp_path / f"{family}-{fused}") for fused in (False, True)
        ]
        assert bundles[0].manifest.all_blobs() == bundles[1].manifest.all_blobs()


def test_shards_give_the_same_bundle(checkpoint, tmp_path) -> None:
    whole, cut = (bundle_of(checkpoint(shard=size), tmp_path / size) for size in ("5GB", "40KB"))

    assert whole.manifest.all_blobs() == cut.manifest.all_blobs()


def test_half_precision_checkpoints_are_widened_exactly(checkpoint, tmp_path) -> None:
    folder = checkpoint("mixtral", dtype="bfloat16")
    bundle = bundle_of(folder, tmp_path / "b")

    expert = bundle.manifest.layers[1].experts[4].blobs["fp32"]
    source = load_torch(folder / "model.safetensors")["model.layers.1.block_sparse_moe.experts.4.w2.weight"]
    np.testing.assert_array_equal(read_tensors(bundle.path(expert))["down"], source.float().numpy().T)


def test_packed_experts_of_gpt_oss_give_the_bundle_of_the_unpacked_ones(checkpoint, tmp_path) -> None:
    plain, packed = (copy_of(checkpoint("gpt_oss"), tmp_path / name) for name in ("plain", "packed"))
    codes = _random_codes(plain)

    alter_tensors(plain, lambda tensors: tensors.update({name: _unpacked(*both) for name, both in codes.items()}))
    alter_tensors(packed, lambda tensors: _pack(tensors, codes))
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))

    bundles = [bundle_of(folder, tmp_path / f"{folder.name}-bundle") for folder in (plain, packed)]
    assert bundles[0].manifest.all_blobs() == bundles[1].manifest.all_blobs()


def test_llama_4_inside_a_model_that_sees_gives_the_bundle_of_the_text_model(checkpoint, tmp_path) -> None:
    alone = checkpoint("llama4_text")
    inside = copy_of(alone, tmp_path / "inside")

    def surround(tensors: Tensors) -> None:
        text = {f"language_model.{name}": tensors.pop(name) for name in list(tensors)}
        seeing = {
            "vision_model.layernorm_pre.weight": np.ones(4, "f4"),
            "multi_modal_projector.linear_1.weight": np.ones((4, 4), "f4"),
        }
        tensors.update(text | seeing)

    alter_tensors(inside, surround)
    config = json.loads((inside / "config.json").read_text())
    (inside / "config.json").write_text(json.dumps({"model_type": "llama4", "text_config": config}))

    bundles = [bundle_of(folder, tmp_path / f"{folder.name}-bundle") for folder in (alone, inside)]
    assert bundles[0].manifest.all_blobs() == bundles[1].manifest.all_blobs()


def _random_codes(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per fused expert tensor [experts, inner, rows]: codes [experts, rows, inner / 32, 16] and scales."""
    random, found = np.random.default_rng(5), {}
    for name, tensor in load_torch(folder / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "experts.down_proj")):
            experts, inner, rows = tensor.shape
            shape = (experts, rows, inner // 32)
            codes = random.integers(0, 256, (*shape, 16), dtype=np.uint8)
            found[name] = codes, random.integers(120, 126, shape, dtype=np.uint8)
    return found


def _unpacked(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    each = [dequantise_mxfp4(*both).T for both in zip(codes, scales, strict=True)]
    return np.ascontiguousarray(np.stack(each))


def _pack(tensors: Tensors, codes: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for name, both in codes.items():
        del tensors[name]
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = both
