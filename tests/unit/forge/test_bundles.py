import json
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import typer
from typer.testing import CliRunner

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.tensors import read_tensors
from expertmesh_common.errors import CorruptData
from expertmesh_common.graphs.trunk import rope_tables
from expertmesh_forge import cli
from expertmesh_forge.carve.settings import CarveSettings
from expertmesh_forge.checking import check_tokens, judge
from expertmesh_forge.converting import ConvertRequest, convert
from expertmesh_forge.dense_forward import dense_states, logits
from expertmesh_forge.errors import BundleError, CarveError, SourceError
from expertmesh_forge.gguf_file import GgufFile
from expertmesh_forge.gguf_reader import read_model
from expertmesh_forge.inspecting import inspect_bundle, verify_bundle
from expertmesh_forge.reference import Expectation, ReferenceModel
from models import tiny_gguf as tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.write_gguf(tmp_path_factory.mktemp("source") / "tiny.gguf")


def _request(source, folder, share=0.75, **changes):
    request = ConvertRequest(str(source), folder, CarveSettings(target_share=share))
    return replace(request, **({"window_tokens": 64, "calibration_windows": 4, "held_out_windows": 2} | changes))


@pytest.fixture(scope="module")
def bundle(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "bundle"
    convert(_request(source, folder))
    return Bundle(folder)


@pytest.fixture
def prompt():
    return np.random.default_rng(5).integers(0, len(tiny.TOKENS), 20).tolist()


def test_a_bundle_says_what_it_is_and_what_it_cost(bundle):
    manifest = bundle.manifest
    assert (manifest.name, manifest.licence, manifest.precisions) == ("tiny", "apache-2.0", ("fp32", "int4"))
    assert manifest.calibration.heldout_share == pytest.approx(0.75, abs=0.15)  # 128 tokens set the thresholds here
    assert manifest.calibration.perplexity_ratio > 0
    assert manifest.calibration.tokens == 3 * 4 * 64
    assert all(layer.gate.max_k == 8 and layer.gate.min_k == 0 for layer in manifest.layers)


def test_the_embedding_has_16_bits_beside_codes_and_is_the_models_own_at_fp32(source, bundle):
    graphs, table = bundle.manifest.trunk.segments[0].graphs, read_model(GgufFile(source)).embedding
    found = {precision: read_tensors(bundle.path(graph.weights))["embed"] for precision, graph in graphs.items()}
    assert {precision: stored.dtype for precision, stored in found.items()} == {"fp32": "f4", "int4": "f2"}
    np.testing.assert_array_equal(found["fp32"], table)
    np.testing.assert_array_equal(found["int4"], table.astype("f2"))


def test_converting_twice_gives_the_same_bytes(source, bundle, tmp_path):
    convert(_request(source, tmp_path / "again"))
    assert Bundle(tmp_path / "again").manifest == bundle.manifest


def test_with_a_share_of_one_the_bundle_is_the_dense_model(source, tmp_path, prompt):
    convert(_request(source, tmp_path / "whole", share=1.0, held_out_windows=0, precisions=("fp32",)))
    found = ReferenceModel(Bundle(tmp_path / "whole")).expect(prompt)
    model = read_model(GgufFile(source))
    np.testing.assert_allclose(found.logits, logits(model, dense_states(model, np.array([prompt]))[0]), atol=1e-4)
    assert found.picks.all()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("int4", 0.25)])
def test_the_reference_equals_the_bundles_own_graphs(bundle, prompt, precision, tolerance):
    expected = ReferenceModel(bundle, precision).expect(prompt)
    found = _run_graphs(bundle, prompt, precision, expected.picks)
    scale = np.abs(expected.logits).max()
    np.testing.assert_allclose(found, expected.logits, atol=tolerance * scale)


def test_a_greedy_answer_of_the_reference_is_exact_and_a_wrong_token_is_not(bundle, prompt):
    model = ReferenceModel(bundle)
    emitted = []
    for _ in range(6):
        emitted.append(int(model.expect([*prompt, *emitted]).logits[-1].argmax()))
    assert check_tokens(model, prompt, emitted).exact
    emitted[3] = (emitted[3] + 1) % len(tiny.TOKENS)
    check = check_tokens(bundle, prompt, emitted)
    assert 3 in [difference.position for difference in check.differences]
    assert not check.exact
    assert check.reference_tokens[:3] == tuple(emitted[:3])


@pytest.mark.parametrize(
    ("second_logit", "router_margin", "tie"), [(1.0, 0.5, False), (2.99999, 0.5, True), (1.0, 1e-6, True)]
)
def test_a_difference_is_a_tie_only_within_the_margins(second_logit, router_margin, tie):
    logits_ = np.array([[0.0, 0.0, 9.0], [3.0, second_logit, 0.0]], np.float32)
    margins = np.array([0.5, router_margin], np.float32)
    check = judge(Expectation(logits_, margins, np.ones((1, 2, 1), bool)), 2, np.array([1]))
    assert [(d.emitted, d.expected, d.tie) for d in check.differences] == [(1, 0, tie)]
    assert check.equal is tie
    assert not check.exact


def test_a_failed_conversion_leaves_the_good_bundle_and_nothing_else(source, bundle, tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    convert(_request(source, folder, held_out_windows=0))
    before = (folder / "manifest.json").read_bytes()

    def fail(_stage, done, _total):
        if _stage == "write" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(_request(source, folder, share=0.6, held_out_windows=0), fail)
    assert (folder / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    convert(_request(source, folder, share=0.6, held_out_windows=0))
    assert Bundle(folder).manifest.calibration.target_share == 0.6


def test_a_folder_that_is_no_bundle_is_never_replaced(source, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(BundleError, match="is not a bundle"):
        convert(_request(source, tmp_path))
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_inspecting_counts_what_is_on_the_disk(bundle):
    report = inspect_bundle(bundle)
    assert [layer.index for layer in report.layers] == [0, 1]
    assert (report.layers[0].experts, report.layers[0].shared_width, report.layers[0].expert_width) == (8, 256, 32)
    fp32, int4 = report.precisions
    assert fp32.expert_bytes > 3 * int4.expert_bytes
    on_disk = sum(path.stat().st_size for path in bundle.blobs.folder.iterdir())
    assert fp32.expert_bytes + fp32.trunk_bytes + int4.expert_bytes + int4.trunk_bytes < on_disk
    json.dumps(report.as_dict())


def test_a_changed_byte_is_found(source, tmp_path):
    convert(_request(source, tmp_path / "bundle", held_out_windows=0, precisions=("fp32",)))
    bundle = Bundle(tmp_path / "bundle")
    assert verify_bundle(bundle) == len(bundle.manifest.all_blobs())
    blob = bundle.blobs.path(bundle.manifest.layers[0].experts[0].blobs["fp32"].digest)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(CorruptData, match="corrupt"):
        verify_bundle(bundle)


def test_the_command_line_converts_inspects_and_verifies(source, tmp_path):
    app, out = _app(), str(tmp_path / "bundle")
    options = ["--share", "0.8", "--windows", "2", "--no-measure", "--precisions", "int4", "--context-tokens", "128"]
    made = CliRunner().invoke(app, ["model", "convert", str(source), "--out", out, *options])
    assert (made.exit_code, made.exception) == (0, None)
    assert Bundle(tmp_path / "bundle").manifest.trunk.context_tokens == 128
    shown = CliRunner().invoke(app, ["model", "inspect", out, "--json"])
    assert json.loads(shown.stdout)["name"] == "tiny"
    assert "int4" in CliRunner().invoke(app, ["model", "inspect", out]).stdout
    assert "blobs are whole" in CliRunner().invoke(app, ["model", "verify", out]).stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["convert", "no-such-thing", "--out", "x"], SourceError),
        (["convert", "SOURCE", "--out", "x", "--share", "0.2"], CarveError),
        (["convert", "SOURCE", "--out", "x", "--precisions", "int3"], CarveError),
        (["curve", "SOURCE", "--shares", "lots"], CarveError),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(source, arguments, error):
    given = [str(source) if argument == "SOURCE" else argument for argument in arguments]
    result = CliRunner().invoke(_app(), ["model", *given])
    assert isinstance(result.exception, error)


def _app():
    app = typer.Typer()
    cli.register(app)
    return app


def _run_graphs(bundle, ids, precision, picks):
    """Prefill through the ONNX segments; experts in ONNX too, picked as told."""
    trunk = bundle.manifest.trunk
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.blobs.folder))
    cache = np.zeros((1, trunk.kv_heads, trunk.context_tokens, trunk.head_dim), np.float32)
    positions = {"seqlens_k": np.array([len(ids) - 1], np.int32), "total_sequence_length": np.array(len(ids), np.int32)}
    cos, sin = rope_tables(trunk.rope_base, trunk.head_dim, trunk.context_tokens)
    positions |= {"rope_cos": cos, "rope_sin": sin}
    feeds = {"token_ids": np.array([ids])}
    for segment in trunk.segments:
        session = ort.InferenceSession(bundle.path(segment.graphs[precision].graph).read_bytes(), options)
        if segment.index == len(bundle.manifest.layers):
            return session.run(["logits"], feeds)[0][0]
        residual, rows = session.run(
            ["residual_out", "rows"], {**feeds, **positions, "past_key": cache, "past_value": cache}
        )
        combined = np.zeros_like(rows)
        for expert in bundle.manifest.layers[segment.index].experts:
            picked = picks[segment.index, :, expert.index : expert.index + 1]
            combined[0] += _expert(bundle, expert.blobs[precision], precision, rows[0]) * picked
        feeds = {"residual": residual, "combined": combined}
    raise AssertionError("no head")


def _expert(bundle, blob, precision, rows):
    from expertmesh_common.bundle.tensors import read_views
    from expertmesh_common.graphs.expert import ExpertShape, expert_graph

    path = bundle.path(blob)
    assert read_tensors(path)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    graph = expert_graph(ExpertShape(tiny.HIDDEN, 32, precision), read_views(path), path.name)
    return ort.InferenceSession(graph, options).run(None, {"rows": rows})[0]
