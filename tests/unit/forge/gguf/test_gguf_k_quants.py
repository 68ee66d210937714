"""Values of the formats that files of 2 to 6 bits are made of reach the bundle as the format's layout means them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from expertmesh_common.bundle.tensors import read_tensors
from expertmesh_forge.dense_model import DenseLayer
from expertmesh_forge.errors import UnsupportedModel
from expertmesh_forge.gguf_file import GgufFile
from expertmesh_forge.gguf_reader import read_model
from expertmesh_forge.importing.importer import ImportRequest, import_checkpoint
from models import tiny_gguf
from models.k_quants import random_blocks, values_of
from models.moe_gguf import write_moe_gguf

Kind = gguf.GGMLQuantizationType

HIDDEN, WIDTH, EXPERTS = 256, 256, 3
_SIZES = {
    "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip
_FAMILIES = {
    "qwen3_moe": {"moe_intermediate_size": WIDTH, "num_experts": EXPERTS, "num_experts_per_tok": 2,
                  "mlp_only_layers": []},
    "mixtral": {"intermediate_size": WIDTH, "num_local_experts": EXPERTS},
}  # fmt: skip
DOWN, OUTPUT = "blk.0.ffn_down_exps.weight", "blk.0.attn_output.weight"


def replaced(path, folder, packed, kind):
    """The model of `folder` with tensors of given bytes, stored as `kind`."""

    def add(writer: gguf.GGUFWriter) -> None:
        for name, blocks in packed.items():
            writer.add_tensor(name, blocks, raw_dtype=kind)

    return write_moe_gguf(path, folder, alter=lambda tensors: [tensors.pop(name) for name in packed], adjust=add)


@pytest.mark.parametrize("family", _FAMILIES)
@pytest.mark.parametrize("kind", [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_NL, Kind.IQ4_XS])
def test_every_value_is_what_the_formats_layout_means(kind, family, checkpoint, bundle_of, tmp_path) -> None:
    packed = {
        DOWN: random_blocks(kind, (EXPERTS, HIDDEN, WIDTH), 1),
        OUTPUT: random_blocks(kind, (HIDDEN, HIDDEN), 2),
    }
    folder = checkpoint(family, **_SIZES, **_FAMILIES[family])
    bundle = bundle_of(replaced(tmp_path / "model.gguf", folder, packed, kind))

    layer, segment = bundle.manifest.layers[0], bundle.manifest.trunk.segments[0]
    down = read_tensors(bundle.path(layer.experts[2].blobs["fp32"]))["down"]
    output = read_tensors(bundle.path(segment.graphs["fp32"].weights))["o"]
    np.testing.assert_array_equal(down.T, values_of(kind, packed[DOWN][2]))
    np.testing.assert_array_equal(output.T, values_of(kind, packed[OUTPUT]))


def test_a_dense_file_is_read_by_the_same_layouts_and_its_rows_are_put_in_order(tmp_path) -> None:
    kind, names = Kind.IQ4_NL, {"blk.0.ffn_up": (512, 64), "blk.0.attn_q": (64, 64)}
    packed = {name: random_blocks(kind, shape, 3) for name, shape in names.items()}
    weights = {name: value for name, value in tiny_gguf.make_weights().items() if name not in packed}

    def add(writer: gguf.GGUFWriter) -> None:
        for name, blocks in packed.items():
            writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)

    model = read_model(GgufFile(tiny_gguf.write_gguf(tmp_path / "dense.gguf", weights, adjust=add)))

    layer: DenseLayer = model.layers[0]
    np.testing.assert_array_equal(layer.up, values_of(kind, packed["blk.0.ffn_up"]))
    stored = values_of(kind, packed["blk.0.attn_q"])
    np.testing.assert_array_equal(tiny_gguf.permute(layer.q, tiny_gguf.HEADS), stored)
    assert model.source.weight_formats == ("F32", "IQ4_NL")


@pytest.mark.parametrize("kind", [Kind.Q8_K, Kind.Q8_1, Kind.Q1_0])
def test_formats_that_hold_no_weights_are_refused_by_tensor_and_format(kind, checkpoint, tmp_path) -> None:
    values, size = gguf.GGML_QUANT_SIZES[kind]
    packed = {OUTPUT: np.zeros((HIDDEN, HIDDEN // values * size), np.uint8)}
    folder = checkpoint("qwen3_moe", **_SIZES, **_FAMILIES["qwen3_moe"])
    path = replaced(tmp_path / "model.gguf", folder, packed, kind)

    _refused(path, rf"model\.gguf: tensor {OUTPUT} is {kind.name}, which is not read")


def test_a_format_that_nobody_knows_is_refused_by_tensor_and_number(checkpoint, tmp_path) -> None:
    path = write_moe_gguf(tmp_path / "model.gguf", checkpoint("qwen3_moe", **_SIZES, **_FAMILIES["qwen3_moe"]))
    whole, name = bytearray(path.read_bytes()), OUTPUT.encode()
    dimensions = whole.index(name) + len(name)
    axes = int.from_bytes(whole[dimensions : dimensions + 4], "little")
    whole[dimensions + 4 + 8 * axes] = 31  # rows of Q4_0 in another order, which files no longer have
    path.write_bytes(whole)

    _refused(path, rf"model\.gguf: tensor {OUTPUT} is of the format 31, which is not known")


def _refused(path, match: str) -> None:
    with pytest.raises(UnsupportedModel, match=match):
        import_checkpoint(ImportRequest(path, path.parent / "bundle", ("fp32",)))
    assert not (path.parent / "bundle").exists()
