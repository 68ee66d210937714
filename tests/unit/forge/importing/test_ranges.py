"""What 16 bits cannot hold is said with its place in the model and its tensor, before its piece is written."""

from pathlib import Path

import numpy as np
import pytest

from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_forge.errors import BadWeights
from expertmesh_forge.importing.importer import ImportRequest, import_checkpoint
from expertmesh_forge.importing.resume import leftovers
from models.altered_checkpoints import alter_tensors

EXPERT = "model.layers.1.block_sparse_moe.experts.3.w3.weight"


def grow(folder: Path, name: str, value: float) -> None:
    alter_tensors(folder, lambda tensors: tensors[name].__setitem__((5, 5), value))


def run(folder: Path, out: Path, *precisions: str) -> None:
    import_checkpoint(ImportRequest(folder, out, precisions, "tiny"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (EXPERT, "layer 1, expert 3: matrix gate_up has"),
        ("model.layers.1.block_sparse_moe.experts.3.w2.weight", "layer 1, expert 3: matrix down has"),
        ("model.layers.2.self_attn.v_proj.weight", "segment 2 of the trunk: matrix qkv has"),
        ("lm_head.weight", "segment 3 of the trunk: matrix lm_head has"),
    ],
)
def test_a_weight_too_large_for_fp16_names_its_place_its_tensor_and_the_file(mixtral, tmp_path, name, words) -> None:
    grow(mixtral, name, -7e4)

    said = rf"{words} values up to 7e\+04 \(tensor {name} of .*mixtral/model\.safetensors\), which fp16 cannot hold"
    with pytest.raises(BadWeights, match=rf"{said}; use fp32 or bf16"):
        run(mixtral, tmp_path / "b", "fp16")


def test_a_weight_too_large_for_bf16_says_so_too(mixtral, tmp_path) -> None:
    grow(mixtral, EXPERT, 3.4e38)

    with pytest.raises(BadWeights, match=rf"layer 1, expert 3: .*tensor {EXPERT} of .*bf16 cannot hold; use fp32$"):
        run(mixtral, tmp_path / "b", "bf16")


def test_the_largest_that_rounds_to_what_fp16_holds_is_imported(mixtral, tmp_path) -> None:
    grow(mixtral, EXPERT, 65519.0)

    run(mixtral, tmp_path / "b", "fp16")


def test_other_precisions_and_what_stays_float32_hold_it(mixtral, tmp_path) -> None:
    grow(mixtral, EXPERT, 7e4)
    run(mixtral, tmp_path / "b", "fp32", "int4")

    grow(mixtral, EXPERT, 1.0)
    alter_tensors(mixtral, lambda tensors: tensors["model.norm.weight"].__setitem__(3, 7e4))
    run(mixtral, tmp_path / "c", "fp16")


def test_a_multiplier_of_the_family_counts_and_hides_the_tensor(checkpoint, tmp_path) -> None:
    folder = checkpoint("granitemoe", residual_multiplier=1e6)

    with pytest.raises(BadWeights, match=r"segment 0 of the trunk: matrix o has values up to \S+, which fp16"):
        run(folder, tmp_path / "b", "fp16")


def test_nothing_of_the_piece_is_written_not_even_at_other_precisions(mixtral, tmp_path, monkeypatch) -> None:
    grow(mixtral, "model.layers.0.self_attn.v_proj.weight", np.float32(7e4))

    with pytest.raises(BadWeights, match="segment 0 of the trunk"):
        run(mixtral, tmp_path / "b", "fp32", "fp16")
    (left,) = leftovers(tmp_path / "b")
    assert not BlobStore(left / "blobs").folder.exists()
