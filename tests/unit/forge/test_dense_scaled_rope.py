"""Dense models whose positions are scaled as those of Llama 3.1 and 3.2, from a folder and from a GGUF file."""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.graphs.rope import rope_tables_of
from expertmesh_forge.carve.settings import CarveSettings
from expertmesh_forge.converting import ConvertRequest, convert
from expertmesh_forge.dense_forward import Rope, dense_states, logits
from expertmesh_forge.dense_reader import read_config as read_folder_config
from expertmesh_forge.dense_source import open_dense
from expertmesh_forge.errors import BadWeights, SourceError, UnsupportedModel
from expertmesh_forge.gguf_file import GgufFile
from expertmesh_forge.gguf_reader import read_config, read_model
from expertmesh_forge.gguf_tokenizer import read_tokenizer
from expertmesh_forge.importing.checkpoint import open_checkpoint
from expertmesh_forge.reference import ReferenceModel
from models import llama_names
from models import tiny_gguf as tiny
from models.altered_checkpoints import alter_config

TRAINED, FACTOR, LOW, HIGH = 32, 8.0, 1.0, 4.0
SCALING = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": FACTOR, "low_freq_factor": LOW, "high_freq_factor": HIGH,
    "original_max_position_embeddings": TRAINED,
}  # fmt: skip
LENGTHS = (TRAINED // 2, 4 * TRAINED)


def exported_factors() -> np.ndarray:
    """What exporters write: by how much each pair of values turns more slowly."""

    def factor(pair: int) -> float:
        turns = TRAINED * 10_000.0 ** (-2 * pair / tiny.HEAD_DIM) / (2 * math.pi)
        kept = min(max((turns - LOW) / (HIGH - LOW), 0.0), 1.0)
        return 1 / ((1 - kept) / FACTOR + kept)

    return np.array([factor(pair) for pair in range(tiny.HEAD_DIM // 2)], np.float32)


def write_scaled(path, factors: np.ndarray, adjust=lambda writer: None):
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", factors)
        adjust(writer)

    return tiny.write_gguf(path, adjust=add)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    return write_scaled(tmp_path_factory.mktemp("source") / "tiny.gguf", exported_factors())


@pytest.fixture(scope="module")
def folder(gguf_file):
    """The same weights as a folder that transformers reads; nobody may change it."""
    folder = gguf_file.parent / "tiny"
    folder.mkdir()
    transformers.LlamaConfig(
        vocab_size=len(tiny.TOKENS), hidden_size=tiny.HIDDEN, intermediate_size=tiny.FFN, rms_norm_eps=1e-5,
        num_hidden_layers=tiny.LAYERS, num_attention_heads=tiny.HEADS, num_key_value_heads=tiny.KV_HEADS,
        max_position_embeddings=tiny.CONTEXT, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        rope_parameters=SCALING,
    ).save_pretrained(folder)  # fmt: skip
    weights = {llama_names.in_folder(name): value for name, value in tiny.make_weights().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    read_tokenizer(GgufFile(gguf_file)).save(str(folder / "tokenizer.json"), pretty=False)
    return folder


@pytest.fixture(scope="module")
def reference(folder):
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def expected_logits(reference, ids) -> np.ndarray:
    with torch.no_grad():
        return reference(torch.tensor(ids)[None]).logits[0].numpy()


def random_ids(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, len(tiny.TOKENS), count)


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("form", ["folder", "gguf_file"])
def test_logits_are_those_of_transformers_also_beyond_the_trained_length(form, tokens, reference, request) -> None:
    model, ids = open_dense(str(request.getfixturevalue(form))).read(), random_ids(tokens)

    expected = expected_logits(reference, ids)

    found = logits(model, dense_states(model, ids[None])[0])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("form", ["folder", "gguf_file"])
def test_a_bundle_turns_as_the_model_did(form, reference, request, tmp_path) -> None:
    every_expert = CarveSettings(target_share=1.0, drift_correction=0.0, refit_ridge=1e6)
    convert(
        ConvertRequest(
            str(request.getfixturevalue(form)), tmp_path / "bundle", every_expert, precisions=("fp32",),
            window_tokens=64, calibration_windows=4, held_out_windows=0,
        )
    )  # fmt: skip
    bundle, ids = Bundle(tmp_path / "bundle"), random_ids(4 * TRAINED)
    trunk, expected = bundle.manifest.trunk, expected_logits(reference, ids)

    assert trunk.rope is not None
    tables, served = Rope(ReferenceModel(bundle).config, len(ids)), rope_tables_of(trunk.rope, len(ids))
    for table, half in zip((tables.cos, tables.sin), served, strict=True):
        np.testing.assert_array_equal(table, np.concatenate([half, half], axis=1))
    found = ReferenceModel(bundle).expect(ids.tolist()).logits
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_file_turns_by_the_frequencies_of_the_folder(gguf_file, folder) -> None:
    found, expected = read_config(GgufFile(gguf_file)), read_folder_config(open_checkpoint(folder))

    np.testing.assert_allclose(found.rope.inverse_frequencies, expected.rope.inverse_frequencies, rtol=3e-7)
    assert found.rope.factor == expected.rope.factor == 1.0
    assert found.rope_base == expected.rope_base == 10_000.0


def test_plain_positions_stay_powers_of_the_base(tmp_path) -> None:
    assert read_config(GgufFile(tiny.write_gguf(tmp_path / "tiny.gguf"))).rope is None


@pytest.mark.parametrize(
    ("factors", "match"),
    [
        (np.ones(7), r"rope_freqs\.weight.*\(7,\).*asks for \(8,\)"),
        (np.zeros(8), r"rope_freqs\.weight.*holds 0, factors of RoPE are above 0"),
        (np.full(8, np.nan), r"rope_freqs\.weight.*NaN"),
    ],
)
def test_factors_that_cannot_be_are_refused_by_name(factors, match, tmp_path) -> None:
    path = write_scaled(tmp_path / "tiny.gguf", factors.astype(np.float32))

    with pytest.raises(BadWeights, match=match):
        read_config(GgufFile(path))


@pytest.mark.parametrize(
    ("add", "match"),
    [
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), r"scales RoPE \('yarn'\)"),
        (lambda w: w.add_rope_scaling_factor(4.0), r"scales RoPE \(llama\.rope\.scaling\.factor is 4\)"),
        (lambda w: w.add_float32("llama.rope.scale_linear", 2.0), r"llama\.rope\.scale_linear is 2"),
        (lambda w: w.add_tensor("rope_factors_long.weight", np.ones(8, np.float32)), r"tensor 'rope_factors_long"),
    ],
)
def test_other_ways_to_scale_are_refused_by_name(add, match, tmp_path) -> None:
    path = tiny.write_gguf(tmp_path / "tiny.gguf", adjust=add)

    with pytest.raises(UnsupportedModel, match=match):
        read_model(GgufFile(path))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"rope_type": "yarn"}, UnsupportedModel, r"config\.json scales RoPE \('yarn'\); supported are .*llama3"),
        ({"low_freq_factor": None}, SourceError, r"config\.json has no 'low_freq_factor'"),
        ({"partial_rotary_factor": 0.5}, UnsupportedModel, "partial_rotary_factor"),
    ],
)
def test_a_folder_that_scales_otherwise_is_refused_by_name(changes, error, match, folder, tmp_path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    alter_config(tmp_path, rope_parameters={**SCALING, **changes})

    with pytest.raises(error, match=match):
        read_folder_config(open_checkpoint(tmp_path))
