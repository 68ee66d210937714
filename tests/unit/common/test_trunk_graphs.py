"""Trunk segments, chained through ONNX Runtime, against a numpy Llama."""

import numpy as np
import onnxruntime
import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.tensors import TensorView, encode_tensors, tensor_views
from expertmesh_common.errors import InvalidInput
from expertmesh_common.graphs.trunk import TrunkShape, rope_tables, segment_graph
from models import tiny_bundle as tiny

SHAPE = TrunkShape(tiny.LAYERS, tiny.HIDDEN, tiny.HEADS, tiny.KV_HEADS, tiny.HEAD_DIM, tiny.EPSILON)
SLOTS = 4


class Chain:
    """All segments of a bundle over shared key-value buffers [SLOTS, kv_heads, context, head_dim]."""

    def __init__(self, bundle: Bundle, precision: str) -> None:
        self.bundle, self.precision = bundle, precision
        self.sessions = [self._session(segment.graphs[precision]) for segment in bundle.manifest.trunk.segments]
        cache = (tiny.LAYERS, 2, SLOTS, tiny.KV_HEADS, tiny.CONTEXT, tiny.HEAD_DIM)
        self.cache = np.full(cache, np.nan, np.float32)

    def _session(self, graph):
        options = onnxruntime.SessionOptions()
        folder = str(self.bundle.blobs.folder)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        model = self.bundle.path(graph.graph).read_bytes()
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(self, ids: list[list[int]], first_slot: int, past: list[int]) -> np.ndarray:
        """Rows of `ids` go to consecutive slots, after `past` cached tokens each; logits [B, S, vocabulary]."""
        token_ids = np.asarray(ids, np.int64)
        lengths = np.asarray(past) + token_ids.shape[1]
        inputs = {"token_ids": token_ids}
        cos, sin = rope_tables(tiny.ROPE_BASE, tiny.HEAD_DIM, tiny.CONTEXT)
        for layer, session in enumerate(self.sessions[:-1]):
            inputs |= {
                "seqlens_k": (lengths - 1).astype(np.int32),
                "total_sequence_length": np.asarray(lengths.max(), np.int32),
                "rope_cos": cos,
                "rope_sin": sin,
            }
            residual, rows = self._run_layer(session, layer, inputs, slice(first_slot, first_slot + len(ids)))
            flat = rows.reshape(-1, tiny.HIDDEN)
            routed = tiny.routed_rows(self.bundle, self.bundle.manifest.layers[layer], flat, self.precision)
            inputs = {"residual": residual, "combined": routed.reshape(rows.shape)}
        return self.sessions[-1].run(["logits"], inputs)[0]

    def _run_layer(self, session, layer: int, inputs, slots: slice):
        binding = session.io_binding()
        kept = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in inputs.items()}
        for name, value in kept.items():
            binding.bind_ortvalue_input(name, value)
        for name, buffer in zip(("key", "value"), self.cache[layer], strict=True):
            value = onnxruntime.OrtValue.ortvalue_from_numpy(buffer[slots])
            binding.bind_ortvalue_input(f"past_{name}", value)
            binding.bind_ortvalue_output(f"present_{name}", value)
        for name in ("residual_out", "rows"):
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        values = dict(zip([o.name for o in session.get_outputs()], binding.get_outputs(), strict=True))
        return values["residual_out"].numpy(), values["rows"].numpy()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("tiny")))


def assert_same(got: np.ndarray, want: np.ndarray) -> None:
    assert np.abs(got - want).max() <= 1e-5 * max(1.0, np.abs(want).max())


def test_a_prompt_in_chunks_gives_the_logits_of_a_plain_forward(bundle: Bundle) -> None:
    chain, ids = Chain(bundle, "fp32"), list(range(40, 100))
    chunks = [chain.run([ids[a:b]], 1, [a])[0] for a, b in ((0, 32), (32, 33), (33, 60))]
    assert_same(np.concatenate(chunks), tiny.dense_logits(bundle, ids))


def test_a_decode_batch_of_unequal_lengths_shares_the_buffers(bundle: Bundle) -> None:
    chain = Chain(bundle, "fp32")
    sequences = [list(range(7, 7 + n)) for n in (3, 50, 1, 17)]
    for slot, ids in enumerate(sequences):
        chain.run([ids], slot, [0])
    for step in range(3):
        following = [100 + step + slot for slot in range(SLOTS)]
        logits = chain.run([[t] for t in following], 0, [len(ids) for ids in sequences])
        sequences = [[*ids, t] for ids, t in zip(sequences, following, strict=True)]
        for slot, ids in enumerate(sequences):
            assert_same(logits[slot, 0], tiny.dense_logits(bundle, ids)[-1])


def test_int4_stays_within_its_rounding_of_the_dequantised_model(bundle: Bundle) -> None:
    chain, ids = Chain(bundle, "int4"), list(range(40, 70))
    got = np.concatenate([chain.run([ids[a:b]], 0, [a])[0] for a, b in ((0, 20), (20, 30))])
    want = tiny.dense_logits(bundle, ids, "int4")
    # Activations are rounded to int8, and a score near the threshold may fall to the other side: compare most rows.
    error = np.abs(got - want).mean(axis=1) / want.std()
    assert np.median(error) < 0.05


def layer_views() -> dict[str, TensorView]:
    data = encode_tensors(tiny._layer_tensors(np.random.default_rng(0), first=False))
    return tensor_views(data, len(data), "layer")


def test_a_missing_tensor_is_named() -> None:
    views = {name: view for name, view in layer_views().items() if name != "o"}
    with pytest.raises(InvalidInput, match="tensor o is missing"):
        segment_graph(SHAPE, 1, "fp32", views, "weights")


def test_a_wrong_shape_is_named() -> None:
    views = layer_views() | {"ffn_norm": layer_views()["o"]}
    with pytest.raises(InvalidInput, match=r"tensor ffn_norm has shape \[64, 64\], the graph needs \[64\]"):
        segment_graph(SHAPE, 1, "fp32", views, "weights")


def test_a_segment_beyond_the_head_is_refused() -> None:
    with pytest.raises(InvalidInput, match="segment 4 does not exist"):
        segment_graph(SHAPE, 4, "fp32", layer_views(), "weights")
