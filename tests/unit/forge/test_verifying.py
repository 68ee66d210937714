"""Verifying a bundle: what is damaged is named, whatever it is, and a whole bundle passes."""

from __future__ import annotations

import json

import onnx
import pytest
from onnx import helper

from expertmesh.cli.main import run
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import Blob, Manifest, write_manifest
from expertmesh_common.bundle.tensors import encode_tensors, read_tensors
from expertmesh_forge.verifying import verify
from models.tiny_bundle import EXPERTS, LAYERS, make_tiny_bundle


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    return Bundle(make_tiny_bundle(tmp_path / "tiny"))


def verified(bundle: Bundle):
    return verify(bundle, lambda *_: None)


def changed(bundle: Bundle, where: str, blob: Blob) -> Bundle:
    """The bundle with another blob at a dotted place of its manifest."""
    document = bundle.manifest.model_dump(mode="json")
    *path, last = where.split(".")
    target = document
    for step in path:
        target = target[int(step) if step.isdigit() else step]
    target[last] = target[last] | blob.model_dump() if isinstance(target[last], dict) else blob.model_dump()
    write_manifest(Manifest.model_validate(document), bundle.folder)
    return Bundle(bundle.folder)


def test_a_whole_bundle_has_no_problems_and_every_graph_was_opened(bundle):
    found = verified(bundle)
    assert (found.whole, found.problems, found.strangers) == (True, [], ())
    assert found.blobs == len(bundle.manifest.all_blobs())
    assert (found.graphs, found.graphs_run) == (2 * (LAYERS + 1), 2 * (LAYERS + 1))
    assert (found.experts, found.gates) == (2 * LAYERS * EXPERTS, LAYERS)


def test_every_damaged_or_missing_blob_is_named(bundle):
    first, second, third = (bundle.blobs.path(blob.digest) for blob in bundle.manifest.all_blobs()[:3])
    first.write_bytes(first.read_bytes()[:-1])
    second.write_bytes(b"x" + second.read_bytes()[1:])
    third.unlink()
    problems = verified(bundle).problems
    assert len(problems) == 3
    for path, problem in zip((first, second, third), problems, strict=True):
        assert path.name in problem


def test_a_graph_that_the_runtime_refuses_is_named_with_its_segment(bundle):
    graph = helper.make_graph([helper.make_node("NoSuchOperator", ["x"], ["y"])], "broken", [], [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    blob = bundle.blobs.put(model.SerializeToString())
    found = verified(changed(bundle, "trunk.segments.1.graphs.fp32.graph", blob))
    assert [problem.partition(":")[0] for problem in found.problems] == ["segment 1 at fp32"]


def test_a_graph_that_reads_another_file_is_refused(bundle):
    segment = bundle.manifest.trunk.segments[0].graphs["fp32"]
    model = onnx.load_model_from_string(bundle.path(segment.graph).read_bytes())
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../../etc/passwd"
    blob = bundle.blobs.put(model.SerializeToString())
    found = verified(changed(bundle, "trunk.segments.0.graphs.fp32.graph", blob))
    assert "not in its weights" in found.problems[0]


def test_an_expert_of_another_shape_is_named(bundle):
    place = bundle.manifest.layers[1].experts[2].blobs["fp32"]
    tensors = read_tensors(bundle.path(place))
    blob = bundle.blobs.put(encode_tensors({"gate_up": tensors["gate_up"][:, :2], "down": tensors["down"]}))
    found = verified(changed(bundle, "layers.1.experts.2.blobs.fp32", blob))
    assert [p.partition(": ")[0] for p in found.problems] == ["layer 1"]
    assert "expert 2 at fp32" in found.problems[0]


def test_a_gate_of_another_shape_is_named(bundle):
    tensors = read_tensors(bundle.path(bundle.manifest.layers[0].gate.weights))
    blob = bundle.blobs.put(encode_tensors({"router": tensors["router"][:, :1], "bias": tensors["bias"]}))
    found = verified(changed(bundle, "layers.0.gate.weights", blob))
    assert "layer 0: gate tensor router" in found.problems[0]


def test_a_tokenizer_or_template_that_does_not_load_is_named(bundle):
    damaged = changed(bundle, "tokenizer.vocabulary", bundle.blobs.put(b"{}"))
    damaged = changed(damaged, "tokenizer.chat_template", damaged.blobs.put(b"{% for %}"))
    tokenizer, template = verified(damaged).problems
    assert "tokenizer" in tokenizer
    assert "chat template" in template


def test_files_that_belong_to_nothing_are_told_but_no_problem(bundle):
    stranger = bundle.blobs.put(b"left over")
    found = verified(bundle)
    assert (found.whole, found.strangers) == (True, (stranger.digest,))


def test_the_command_ends_with_code_7_and_names_the_file_in_json_too(bundle, capsys):
    assert run(["model", "verify", str(bundle.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["whole"] is True
    blob = bundle.blobs.path(bundle.manifest.all_blobs()[0].digest)
    blob.write_bytes(b"short")
    assert run(["model", "verify", str(bundle.folder)]) == 7
    said = capsys.readouterr()
    assert blob.name in said.err
    assert not said.out
    assert run(["model", "verify", str(bundle.folder), "--json"]) == 7
    assert json.loads(capsys.readouterr().out)["problems"]


def test_a_folder_without_a_bundle_is_one_line_and_code_2(tmp_path, capsys):
    assert run(["model", "verify", str(tmp_path)]) == 2
    assert "manifest.json is missing" in capsys.readouterr().err
