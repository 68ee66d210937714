"""A checkpoint becomes a bundle: what is in it, and what stops an import before it has begun."""

from pathlib import Path

import numpy as np
import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_forge.errors import BadWeights, BundleError, ForgeError, SourceError, UnsupportedModel
from expertmesh_forge.importing.importer import ImportRequest, import_checkpoint
from expertmesh_forge.verifying import verify
from models.altered_checkpoints import alter_config, alter_tensors


def bundle_of(folder, out, **options) -> Bundle:
    import_checkpoint(ImportRequest(folder, out, **{"precisions": ("fp32",), "name": "tiny", **options}))
    return Bundle(out)


def test_the_bundle_is_whole(checkpoint, tmp_path) -> None:
    bundle = bundle_of(checkpoint("qwen2_moe"), tmp_path / "b", precisions=("fp32", "int4"))

    found = verify(bundle, lambda *_: None)

    assert found.problems == []
    assert found.strangers == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["blobs", "manifest.json"]


def test_the_manifest_says_where_it_came_from(checkpoint, tmp_path) -> None:
    manifest = bundle_of(checkpoint("deepseek_v3"), tmp_path / "b", precisions=("fp32", "int4")).manifest

    assert (manifest.family, manifest.licence) == ("deepseek_v3", "apache-2.0")
    assert manifest.source.startswith("deepseek_v3-")
    assert manifest.precisions == ("fp32", "int4")
    assert [layer.kind for layer in manifest.layers] == ["dense", "moe", "moe"]
    assert {expert.frequency for expert in manifest.layers[1].experts} == {3 / 8}


def test_a_bundle_that_is_there_is_replaced(checkpoint, tmp_path) -> None:
    bundle_of(checkpoint("mixtral"), tmp_path / "b")

    assert bundle_of(checkpoint("olmoe"), tmp_path / "b").manifest.family == "olmoe"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_bundle_may_be_named_by_a_link_or_a_dot(checkpoint, tmp_path, monkeypatch) -> None:
    bundle_of(checkpoint("mixtral"), tmp_path / "b")
    (tmp_path / "link").symlink_to(tmp_path / "b")

    assert bundle_of(checkpoint("olmoe"), tmp_path / "link").manifest.family == "olmoe"
    assert (tmp_path / "link").is_symlink()
    monkeypatch.chdir(tmp_path / "b")
    import_checkpoint(ImportRequest(checkpoint("mixtral"), Path(), ("fp32",)))
    assert Bundle(tmp_path / "b").manifest.family == "mixtral"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "link"]


def test_a_folder_that_is_no_bundle_is_left_alone(checkpoint, tmp_path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letters").write_text("dear")

    with pytest.raises(BundleError, match="is not a bundle"):
        bundle_of(checkpoint("mixtral"), tmp_path / "b")
    assert (tmp_path / "b" / "letters").read_text() == "dear"


def test_tensors_that_no_part_of_the_family_knows_are_not_left_out_silently(mixtral, tmp_path) -> None:
    alter_tensors(
        mixtral, lambda tensors: tensors.update({"model.layers.0.self_attn.q_norm.weight": np.ones(16, "f4")})
    )

    with pytest.raises(UnsupportedModel, match=r"1 tensors belong to no part .* first model.layers.0.self_attn.q_norm"):
        bundle_of(mixtral, tmp_path / "b")


def test_tensors_that_only_training_needs_are_ignored(checkpoint, mixtral, tmp_path) -> None:
    alter_tensors(
        mixtral, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, "f4")})
    )

    assert bundle_of(mixtral, tmp_path / "b").manifest.family == "mixtral"


def _drop(tensors) -> None:
    del tensors["model.layers.2.block_sparse_moe.experts.6.w3.weight"]


def _reshape(tensors) -> None:
    tensors["model.layers.2.self_attn.v_proj.weight"] = np.zeros((64, 32), "f4")


@pytest.mark.parametrize(
    ("damage", "words"),
    [(_drop, r"experts.6.w3.weight is missing"), (_reshape, r"layers.2.self_attn.v_proj.weight has shape \[64, 32\]")],
)
def test_what_is_missing_or_misshapen_is_said_before_anything_is_written(mixtral, tmp_path, damage, words) -> None:
    alter_tensors(mixtral, damage)

    with pytest.raises(BadWeights, match=words):
        bundle_of(mixtral, tmp_path / "out" / "b")
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_no_number_leaves_the_bundle_that_was_there(checkpoint, mixtral, tmp_path) -> None:
    good = bundle_of(checkpoint("olmoe"), tmp_path / "out" / "b").manifest
    name = "model.layers.1.block_sparse_moe.experts.3.w1.weight"
    alter_tensors(mixtral, lambda tensors: tensors[name].__setitem__((5, 5), np.nan))

    with pytest.raises(BadWeights, match=rf"model.safetensors: tensor {name} holds NaN"):
        bundle_of(mixtral, tmp_path / "out" / "b")
    assert Bundle(tmp_path / "out" / "b").manifest == good


@pytest.mark.parametrize("name", ["", "a/b", "-x", "a" * 129, "ä"])
def test_a_name_that_no_model_may_have_is_refused_at_once(checkpoint, tmp_path, name: str) -> None:
    with pytest.raises(ForgeError, match="is not possible"):
        bundle_of(checkpoint("mixtral"), tmp_path / "b", name=name)


def test_a_config_that_does_not_belong_to_the_weights_is_refused(mixtral, tmp_path) -> None:
    alter_config(mixtral, num_local_experts=6)

    with pytest.raises(BadWeights, match=r"gate.weight has shape \[7, 64\], the config asks for \[6, 64\]"):
        bundle_of(mixtral, tmp_path / "b")


def test_a_missing_tokenizer_stops_the_import(mixtral, tmp_path) -> None:
    (mixtral / "tokenizer.json").unlink()

    with pytest.raises(SourceError, match=r"tokenizer.json is missing"):
        bundle_of(mixtral, tmp_path / "b")
