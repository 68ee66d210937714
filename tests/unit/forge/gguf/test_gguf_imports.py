"""A GGUF file gives the bundle that the folder it was exported from gives."""

import gguf
import numpy as np
import pytest

from expertmesh_common.bundle.tensors import read_tensors
from expertmesh_forge.gguf_file import GgufFile
from models.moe_gguf import ARCHITECTURES, write_moe_gguf
from models.tiny_bundle import IM_END

Kind = gguf.GGMLQuantizationType


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_the_file_and_the_folder_give_the_same_bundle(family, checkpoint, bundle_of, tmp_path) -> None:
    folder = checkpoint(family)
    path = write_moe_gguf(tmp_path / "model.gguf", folder)

    found, expected = (bundle_of(source, precisions=("fp32", "int4")).manifest for source in (path, folder))

    assert found.trunk == expected.trunk
    assert found.layers == expected.layers
    assert found.tokenizer.eos_ids[0] == expected.tokenizer.eos_ids[0]
    assert (found.family, found.licence) == (family, "apache-2.0")


def test_the_bundle_says_what_file_it_came_from_and_how_it_talks(checkpoint, bundle_of, tmp_path) -> None:
    folder = checkpoint("qwen3_moe")
    path = write_moe_gguf(tmp_path / "Tiny-Q8_0.gguf", folder)

    found, expected = bundle_of(path), bundle_of(folder)

    assert found.manifest.name == "tiny-q8_0"
    assert found.manifest.source.startswith("Tiny-Q8_0.gguf (")
    assert found.manifest.tokenizer.eos_ids[0] == IM_END
    assert found.manifest.tokenizer.chat_template == expected.manifest.tokenizer.chat_template


def test_a_file_with_one_tensor_per_expert_gives_the_same_bundle(checkpoint, bundle_of, tmp_path) -> None:
    def unstack(tensors):
        for name in [name for name in tensors if "_exps" in name]:
            for index, expert in enumerate(tensors.pop(name)):
                tensors[name.replace("_exps.", f".{index}.")] = expert

    stacked = write_moe_gguf(tmp_path / "stacked.gguf", checkpoint())
    early = write_moe_gguf(tmp_path / "early.gguf", checkpoint(), alter=unstack)

    assert bundle_of(early).manifest.layers == bundle_of(stacked).manifest.layers


def test_a_model_split_over_files_is_read_from_all_of_them(checkpoint, bundle_of, tmp_path) -> None:
    whole = write_moe_gguf(tmp_path / "whole.gguf", checkpoint())
    write_moe_gguf(tmp_path / "cut.gguf", checkpoint(), split_tensors=9)
    parts = sorted(tmp_path.glob("cut-*.gguf"))
    assert len(parts) == 4

    cut = bundle_of(parts[0]).manifest
    assert cut.all_blobs() == bundle_of(whole).manifest.all_blobs()
    assert cut.name == "cut"


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_it_does_not_matter_in_which_part_a_tensor_lies(family, checkpoint, bundle_of, tmp_path) -> None:
    def last_first(tensors):
        for name in reversed(list(tensors)):
            tensors[name] = tensors.pop(name)

    whole = write_moe_gguf(tmp_path / "whole.gguf", checkpoint(family))
    write_moe_gguf(tmp_path / "cut.gguf", checkpoint(family), split_tensors=9, alter=last_first)
    parts = sorted(tmp_path.glob("cut-*.gguf"))
    assert "output.weight" in GgufFile(parts[-1]).tensors

    found, expected = bundle_of(parts[0]).manifest, bundle_of(whole).manifest
    assert (found.trunk, found.layers) == (expected.trunk, expected.layers)


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q5_1, Kind.F16, Kind.BF16])
def test_every_quantised_value_is_the_one_that_the_file_means(kind, checkpoint, bundle_of, tmp_path) -> None:
    kept = {}
    path = write_moe_gguf(tmp_path / "model.gguf", checkpoint(), kind=kind, alter=kept.update)
    bundle = bundle_of(path)

    layer, segment = bundle.manifest.layers[1], bundle.manifest.trunk.segments[1]
    expert = read_tensors(bundle.path(layer.experts[4].blobs["fp32"]))
    trunk = read_tensors(bundle.path(segment.graphs["fp32"].weights))
    down = gguf.quants.quantize(kept["blk.1.ffn_down_exps.weight"][4], kind)
    output = gguf.quants.quantize(kept["blk.1.attn_output.weight"], kind)
    np.testing.assert_array_equal(expert["down"], gguf.quants.dequantize(down, kind).T)
    np.testing.assert_array_equal(trunk["o"], gguf.quants.dequantize(output, kind).T)


def test_eight_bits_are_a_scale_times_a_whole_number(checkpoint, bundle_of, tmp_path) -> None:
    kept = {}
    bundle = bundle_of(write_moe_gguf(tmp_path / "m.gguf", checkpoint(), kind=Kind.Q8_0, alter=kept.update))
    found = read_tensors(bundle.path(bundle.manifest.layers[0].experts[6].blobs["fp32"]))["down"].T

    blocks = kept["blk.0.ffn_down_exps.weight"][6].reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(found.reshape(-1, 32), blocks, atol=float(scales.max()) * 0.51)
    steps = found.reshape(-1, 32) / scales
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)


def test_a_window_and_scaled_positions_of_the_file_reach_the_bundle(checkpoint, bundle_of, tmp_path) -> None:
    def add(writer):
        writer.add_sliding_window(12)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(64)

    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    folder = checkpoint("olmoe", rope_parameters=yarn)
    scaled = write_moe_gguf(tmp_path / "scaled.gguf", folder, adjust=add)
    windowed = write_moe_gguf(tmp_path / "windowed.gguf", checkpoint(), adjust=add)

    assert bundle_of(scaled).manifest.trunk.rope == bundle_of(folder).manifest.trunk.rope
    plain = write_moe_gguf(tmp_path / "plain.gguf", checkpoint())
    graphs = [bundle_of(path).manifest.trunk.segments[0].graphs["fp32"].graph for path in (windowed, plain)]
    assert graphs[0] != graphs[1]
