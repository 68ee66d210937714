"""A dense checkpoint folder converts as a GGUF file of the same model does."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_forge.carve.settings import CarveSettings
from expertmesh_forge.converting import ConvertRequest, convert
from expertmesh_forge.dense_forward import dense_states, logits
from expertmesh_forge.dense_reader import read_config, read_model
from expertmesh_forge.dense_source import open_dense
from expertmesh_forge.errors import BadWeights, ForgeError, SourceError, UnsupportedModel
from expertmesh_forge.gguf_file import GgufFile
from expertmesh_forge.gguf_tokenizer import read_tokenizer
from expertmesh_forge.importing.checkpoint import open_checkpoint
from models import llama_names
from models import tiny_gguf as tiny
from models.altered_checkpoints import alter_config, alter_tensors


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    return tiny.write_gguf(tmp_path_factory.mktemp("source") / "tiny.gguf")


@pytest.fixture(scope="module")
def written(gguf_file):
    """The weights, the tokenizer and the chat template of the GGUF file as a folder; nobody may change it."""
    folder = gguf_file.parent / "tiny"
    folder.mkdir()
    config = transformers.LlamaConfig(
        vocab_size=len(tiny.TOKENS), hidden_size=tiny.HIDDEN, intermediate_size=tiny.FFN, rms_norm_eps=1e-5,
        num_hidden_layers=tiny.LAYERS, num_attention_heads=tiny.HEADS, num_key_value_heads=tiny.KV_HEADS,
        max_position_embeddings=tiny.CONTEXT, tie_word_embeddings=True, bos_token_id=1, eos_token_id=[2, 0],
    )  # fmt: skip
    config.save_pretrained(folder)
    weights = {llama_names.in_folder(name): value for name, value in tiny.make_weights().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    read_tokenizer(GgufFile(gguf_file)).save(str(folder / "tokenizer.json"), pretty=False)
    about = {"bos_token": None, "eos_token": "<|im_end|>", "chat_template": tiny.TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "tiny")


def _convert(source, out) -> Bundle:
    convert(
        ConvertRequest(
            str(source), out, CarveSettings(target_share=0.75), window_tokens=64, calibration_windows=4,
            held_out_windows=0,
        )
    )  # fmt: skip
    return Bundle(out)


def test_the_folder_and_the_file_give_the_same_bundle(gguf_file, written, tmp_path) -> None:
    found, expected = _convert(written, tmp_path / "folder").manifest, _convert(gguf_file, tmp_path / "file").manifest

    assert found.all_blobs() == expected.all_blobs()
    assert (found.trunk, found.layers) == (expected.trunk, expected.layers)
    assert (found.name, found.licence) == (expected.name, expected.licence) == ("tiny", "apache-2.0")
    assert set(found.tokenizer.eos_ids) == set(expected.tokenizer.eos_ids)
    assert found.tokenizer.eos_ids[0] == expected.tokenizer.eos_ids[0]
    assert found.source.startswith("tiny sha256:")


def test_logits_are_those_of_transformers(written) -> None:
    model = read_model(open_checkpoint(written))
    reference = transformers.LlamaForCausalLM.from_pretrained(written, dtype=torch.float32).eval()
    ids = np.random.default_rng(3).integers(0, len(tiny.TOKENS), (1, 40))

    with torch.no_grad():
        expected = reference(torch.tensor(ids)).logits[0].numpy()
    np.testing.assert_allclose(logits(model, dense_states(model, ids)[0]), expected, atol=1e-4)


def test_a_head_of_its_own_and_half_precision_are_read(folder) -> None:
    head = np.ones((len(tiny.TOKENS), tiny.HIDDEN), np.float16)
    alter_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": head}))
    alter_config(folder, tie_word_embeddings=False)

    model = read_model(open_checkpoint(folder))

    assert not model.tied
    np.testing.assert_array_equal(model.head, head.astype(np.float32))
    assert model.source.weight_formats == ("F16", "F32")


def test_texts_are_no_longer_than_the_window_of_a_mistral(folder) -> None:
    alter_config(folder, model_type="mistral", sliding_window=100)

    assert read_config(open_checkpoint(folder)).context_tokens == 100


def test_a_folder_with_a_config_beside_a_gguf_file_is_that_file(gguf_file, tmp_path) -> None:
    shutil.copy(gguf_file, tmp_path / "tiny.gguf")
    (tmp_path / "config.json").write_text("{}")

    assert open_dense(str(tmp_path)).config.hidden == tiny.HIDDEN


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "qwen2"}, r"config\.json is a 'qwen2' model; supported are dense llama and mistral"),
        ({"model_type": "mixtral"}, "already a mixture of experts; `expertmesh model import`"),
        ({"attention_bias": True}, "has attention_bias"),
        ({"hidden_act": "gelu"}, "has the activation 'gelu'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, r"scales RoPE \('linear'\)"),
        ({"quantization_config": {"quant_method": "gptq"}}, "has quantised weights"),
    ],
)
def test_what_the_carving_cannot_run_is_refused_by_name(changes, match, folder, tmp_path) -> None:
    alter_config(folder, **changes)

    _refused(folder, tmp_path, UnsupportedModel, match)


def test_wrong_tensors_are_named_before_anything_is_measured(folder, tmp_path) -> None:
    name, own = "model.layers.1.mlp.up_proj.weight", tiny.make_weights()["blk.1.ffn_up"]
    alter_tensors(folder, lambda tensors: tensors.update({name: own[:7]}))
    _refused(folder, tmp_path, BadWeights, rf"model\.safetensors: tensor {name} has shape \[7, 64\]")

    alter_tensors(folder, lambda tensors: tensors.pop(name))
    _refused(folder, tmp_path, BadWeights, f"tensor {name} is missing")

    extra = "model.layers.0.self_attn.q_proj.bias"
    alter_tensors(folder, lambda tensors: tensors.update({name: own, extra: own[0]}))
    _refused(folder, tmp_path, UnsupportedModel, f"first {extra}")


def test_a_truncated_folder_is_refused(folder, tmp_path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])

    _refused(folder, tmp_path, SourceError, r"model\.safetensors is cut short")


def _refused(folder, tmp_path, error: type[ForgeError], match: str) -> None:
    with pytest.raises(error, match=match):
        _convert(folder, tmp_path / "out" / "bundle")
    assert not (tmp_path / "out").exists()
