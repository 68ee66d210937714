import gguf
import numpy as np
import pytest

from expertmesh_forge.dense_forward import dense_states, logits
from expertmesh_forge.errors import BadWeights, SourceError, UnsupportedModel
from expertmesh_forge.gguf_file import GgufFile
from expertmesh_forge.gguf_reader import read_config, read_model, unpermute_rows
from expertmesh_forge.locating import find_gguf
from models import tiny_gguf as tiny


def test_sizes_and_constants_come_from_the_metadata(tmp_path):
    config = read_config(GgufFile(tiny.write_gguf(tmp_path / "tiny.gguf")))
    assert (config.layers, config.hidden, config.ffn, config.heads, config.kv_heads) == (2, 64, 512, 4, 2)
    assert (config.head_dim, config.vocab, config.norm_eps, config.rope_base) == (16, len(tiny.TOKENS), 1e-5, 10_000.0)


def test_weights_come_back_in_rotate_half_order_and_tied(tmp_path):
    weights = tiny.make_weights()
    model = read_model(GgufFile(tiny.write_gguf(tmp_path / "tiny.gguf", weights)))
    for index, layer in enumerate(model.layers):
        np.testing.assert_array_equal(layer.q, weights[f"blk.{index}.attn_q"])
        np.testing.assert_array_equal(layer.k, weights[f"blk.{index}.attn_k"])
        np.testing.assert_array_equal(layer.down, weights[f"blk.{index}.ffn_down"])
    assert model.tied
    assert model.source.licence == "apache-2.0"


def test_rotating_neighbours_before_equals_rotating_halves_after_unpermuting():
    random = np.random.default_rng(0)
    heads, head_dim, position = 3, 8, 5
    stored, x = random.standard_normal((heads * head_dim, 16)), random.standard_normal(16)
    angles = position * 10_000.0 ** (-np.arange(head_dim // 2) * 2 / head_dim)
    pairs = (stored @ x).reshape(heads, head_dim // 2, 2)
    neighbours = np.stack([pairs[..., 0] * np.cos(angles) - pairs[..., 1] * np.sin(angles),
                           pairs[..., 0] * np.sin(angles) + pairs[..., 1] * np.cos(angles)], axis=-1)  # fmt: skip
    first, second = np.split((unpermute_rows(stored, heads) @ x).reshape(heads, head_dim), 2, axis=1)
    halves = np.concatenate([first * np.cos(angles) - second * np.sin(angles),
                             second * np.cos(angles) + first * np.sin(angles)], axis=1)  # fmt: skip
    np.testing.assert_allclose(halves, neighbours.swapaxes(1, 2).reshape(heads, head_dim), atol=1e-12)


def test_the_numpy_forward_equals_a_plain_loop_in_float64(tmp_path):
    weights = tiny.make_weights()
    model = read_model(GgufFile(tiny.write_gguf(tmp_path / "tiny.gguf", weights)))
    ids = np.random.default_rng(1).integers(0, len(tiny.TOKENS), 150)  # more than one block of queries
    found = logits(model, dense_states(model, ids[None])[0])
    np.testing.assert_allclose(found, _plain_logits(weights, ids), atol=1e-4)


def test_a_truncated_file_says_so(tmp_path):
    path = tiny.write_gguf(tmp_path / "tiny.gguf")
    whole = path.read_bytes()
    for size in (3, 20, 900, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match=r"truncated|not a GGUF"):
            GgufFile(path)


def test_a_missing_file_says_what_to_give(tmp_path):
    with pytest.raises(SourceError, match=r"give the path of a \.gguf file"):
        GgufFile(tmp_path / "none.gguf")


def test_a_missing_tensor_is_named(tmp_path):
    weights = tiny.make_weights()
    del weights["blk.1.ffn_up"]
    with pytest.raises(BadWeights, match=r"lacks the tensor 'blk\.1\.ffn_up\.weight'"):
        read_model(GgufFile(tiny.write_gguf(tmp_path / "tiny.gguf", weights)))


def test_a_tensor_of_the_wrong_shape_is_named(tmp_path):
    weights = tiny.make_weights() | {"blk.0.ffn_down": np.zeros((tiny.HIDDEN, 7), np.float32)}
    with pytest.raises(BadWeights, match=r"blk\.0\.ffn_down.*\(64, 7\).*\(64, 512\)"):
        read_model(GgufFile(tiny.write_gguf(tmp_path / "tiny.gguf", weights)))


def test_nan_weights_are_refused_by_name(tmp_path):
    weights = tiny.make_weights()
    weights["blk.0.attn_v"][3, 4] = np.nan
    with pytest.raises(BadWeights, match=r"blk\.0\.attn_v.*NaN"):
        read_model(GgufFile(tiny.write_gguf(tmp_path / "tiny.gguf", weights)))


def test_other_families_are_refused_with_what_is_supported(tmp_path):
    with pytest.raises(UnsupportedModel, match=r"'phi3'.*supported: dense llama"):
        read_config(GgufFile(tiny.write_gguf(tmp_path / "tiny.gguf", architecture="phi3")))


def test_a_mixture_of_experts_is_refused(tmp_path):
    def with_experts(writer: gguf.GGUFWriter) -> None:
        writer.add_expert_count(8)

    with pytest.raises(UnsupportedModel, match="already a mixture"):
        read_config(GgufFile(tiny.write_gguf(tmp_path / "tiny.gguf", adjust=with_experts)))


def test_a_folder_with_one_model_is_enough_and_an_unknown_package_is_refused(tmp_path):
    path = tiny.write_gguf(tmp_path / "tiny.gguf")
    assert find_gguf(str(tmp_path)) == path
    with pytest.raises(SourceError, match="neither a file nor an installed package"):
        find_gguf("no-such-package-anywhere")


def _plain_logits(weights, ids):
    def norm(x, weight):
        return x / np.sqrt((x * x).mean() + 1e-5) * weight

    w = {name: value.astype(np.float64) for name, value in weights.items()}
    angles = 10_000.0 ** (-np.arange(tiny.HEAD_DIM // 2) * 2 / tiny.HEAD_DIM)
    states = w["token_embd"][ids]
    for layer in range(tiny.LAYERS):
        own = {name.rpartition(".")[2]: value for name, value in w.items() if name.startswith(f"blk.{layer}.")}
        rows = np.array([norm(x, own["attn_norm"]) for x in states])
        q = (rows @ own["attn_q"].T).reshape(len(ids), tiny.HEADS, -1)
        k = (rows @ own["attn_k"].T).reshape(len(ids), tiny.KV_HEADS, -1)
        v = (rows @ own["attn_v"].T).reshape(len(ids), tiny.KV_HEADS, -1)
        turns = np.exp(1j * np.outer(np.arange(len(ids)), angles))[:, None]
        q, k = (np.stack(np.split(x, 2, axis=2), axis=-1) @ [1, 1j] * turns for x in (q, k))
        for t in range(len(ids)):
            heads = []
            for head in range(tiny.HEADS):
                kv = head // (tiny.HEADS // tiny.KV_HEADS)
                scores = (k[: t + 1, kv].conj() @ q[t, head]).real / np.sqrt(tiny.HEAD_DIM)
                chances = np.exp(scores - scores.max())
                heads.append(chances / chances.sum() @ v[: t + 1, kv])
            states[t] = states[t] + own["attn_output"] @ np.concatenate(heads)
            x = norm(states[t], own["ffn_norm"])
            gate = own["ffn_gate"] @ x
            states[t] = states[t] + own["ffn_down"] @ (gate / (1 + np.exp(-gate)) * (own["ffn_up"] @ x))
    return np.array([norm(x, w["output_norm"]) for x in states]) @ w["token_embd"].T
