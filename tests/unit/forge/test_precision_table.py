"""What precisions cost is measured on the weights that a bundle would hold."""

from __future__ import annotations

import numpy as np
import pytest

from expertmesh_forge.dense_forward import dense_states, embed, logits, rms_norm
from expertmesh_forge.gguf_file import GgufFile
from expertmesh_forge.gguf_reader import read_model
from expertmesh_forge.input_energy import input_energy
from expertmesh_forge.measuring import PerplexityRatio
from expertmesh_forge.precision_table import Measured, Row, publish_precisions, with_precision
from models.tiny_gguf import write_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return read_model(GgufFile(write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")))


def test_fewer_bits_move_the_logits_further(model):
    tokens = np.random.default_rng(0).integers(0, 256, (1, 40))
    exact = logits(model, dense_states(model, tokens)[0])

    def error(precision, block=0):
        kept = with_precision(model, precision, block)
        return np.abs(logits(kept, dense_states(kept, tokens)[0]) - exact).mean()

    assert error("fp32") == 0
    assert 0 < error("fp16") < error("bf16") < error("int4", 32) < error("int4", 128)
    assert error("int8", 32) < error("int4", 32) / 4


def test_calibrated_scales_move_the_logits_less(model):
    tokens = np.random.default_rng(0).integers(0, 256, (2, 40))
    exact = logits(model, dense_states(model, tokens))

    def error(energy):
        kept = with_precision(model, "int4", 32, energy)
        return np.square(logits(kept, dense_states(kept, tokens)) - exact).mean()

    assert error(input_energy(model, tokens)) < error(None)


def test_energies_are_mean_squares_of_what_each_matrix_is_multiplied_with(model):
    config, layer = model.config, model.layers[0]
    tokens = np.arange(30)[:, None]  # windows of one token, which attends to itself alone

    energy = input_energy(model, tokens)

    rows = rms_norm(embed(model, tokens), layer.attn_norm, config.norm_eps)[:, 0]
    values = (rows @ layer.v.T).reshape(len(rows), config.kv_heads, -1)
    mixed = np.repeat(values, config.heads // config.kv_heads, axis=1).reshape(len(rows), -1)
    found = energy.layers[0]
    for name, want in {"q": rows, "k": rows, "v": rows, "o": mixed}.items():
        np.testing.assert_allclose(found.of(name), np.square(want).mean(axis=0), rtol=1e-4, err_msg=name)
    states = embed(model, tokens)[:, 0] + mixed @ layer.o.T
    rows = rms_norm(states, layer.ffn_norm, config.norm_eps)
    gate = rows @ layer.gate.T
    neurons = gate / (1 + np.exp(-gate)) * (rows @ layer.up.T)
    for name, want in {"gate": rows, "up": rows, "down": neurons}.items():
        np.testing.assert_allclose(found.of(name), np.square(want).mean(axis=0), rtol=1e-4, err_msg=name)
    last = rms_norm(dense_states(model, tokens)[:, 0], model.final_norm, config.norm_eps)
    np.testing.assert_allclose(energy.head, np.square(last).mean(axis=0), rtol=1e-4)


@pytest.mark.parametrize(("precision", "form"), [("fp32", "f4"), ("fp16", "f2"), ("int8", "f2"), ("int4", "f2")])
def test_the_embedding_is_that_of_a_bundle(model, precision, form):
    found = with_precision(model, precision, 32).embedding

    np.testing.assert_array_equal(found, model.embedding.astype(form).astype("f4"))
    assert (found == model.embedding).all() == (precision == "fp32")


def test_the_page_has_a_line_for_every_row(tmp_path):
    rows = (
        Row("fp32", 0, 4.0, PerplexityRatio(1.0, 1.0, 1.0)),
        Row("int4", 128, 0.53, PerplexityRatio(1.0812, 1.0701, 1.0923)),
        Row("int4", 128, 0.53, PerplexityRatio(1.0412, 1.0301, 1.0523), is_calibrated=True),
    )

    page = publish_precisions(Measured("m.gguf", 12.34, 6, 3072, "abc", rows), tmp_path / "docs").read_text()

    assert "| fp32 | - | 4.00 | 1.0000 [1.0000, 1.0000] |" in page
    assert "| int4 | 128 | 0.53 | 1.0812 [1.0701, 1.0923] |" in page
    assert "| int4, calibrated | 128 | 0.53 | 1.0412 [1.0301, 1.0523] |" in page
    assert "3,072 held-out tokens in 6 documents" in page.replace("\n", " ")
