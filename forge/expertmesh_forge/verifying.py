"""Whether a bundle is whole and would load: every digest, every graph, every expert, gates, tokenizer, template.

Nothing is repaired and nothing stops at the first problem: the report names every one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import Blob, Expert, Gate, Graph, Layer, Precision
from expertmesh_common.bundle.tensors import read_tensors, read_views
from expertmesh_common.chat_templates import chat_template
from expertmesh_common.errors import CorruptData, MeshError
from expertmesh_common.graphs.expert import ExpertShape, expert_graph

__all__ = ["Verified", "verify"]

OnProgress = Callable[[str, int, int], None]
Problems = Iterator[str]


@dataclass(slots=True)
class Verified:
    """What was looked at, and every problem in a sentence. `graphs_run` counts those opened by the runtime itself."""

    name: str
    blobs: int = 0
    graphs: int = 0
    graphs_run: int = 0
    experts: int = 0
    gates: int = 0
    strangers: tuple[str, ...] = ()
    """Files beside the blobs that no part of the manifest names; they only take room."""
    problems: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return not self.problems


def verify(bundle: Bundle, on_progress: OnProgress) -> Verified:
    """Everything. The manifest was checked when `bundle` was made."""
    found = Verified(bundle.manifest.name)
    _blobs(bundle, found, on_progress)
    if found.problems:
        return found  # what a damaged file holds says nothing more
    _graphs(bundle, found, on_progress)
    _layers(bundle, found, on_progress)
    found.problems += _text(bundle)
    return found


def _blobs(bundle: Bundle, found: Verified, on_progress: OnProgress) -> None:
    blobs = bundle.manifest.all_blobs()
    for number, blob in enumerate(blobs, 1):
        found.problems += _blob(bundle, blob)
        found.blobs += 1
        on_progress("digests", number, len(blobs))
    known = {blob.digest for blob in blobs}
    folder = bundle.blobs.folder
    found.strangers = tuple(sorted(p.name for p in folder.iterdir() if p.name not in known)) if folder.is_dir() else ()


def _blob(bundle: Bundle, blob: Blob) -> Problems:
    try:
        size = bundle.path(blob).stat().st_size
    except MeshError as error:
        yield str(error)
        return
    if size != blob.size_bytes:
        yield f"blob {blob.digest} has {size} bytes, the manifest says {blob.size_bytes}"


def _graphs(bundle: Bundle, found: Verified, on_progress: OnProgress) -> None:
    trunk = [(s.index, p, graph) for s in bundle.manifest.trunk.segments for p, graph in s.graphs.items()]
    can_run = importlib.util.find_spec("onnxruntime") is not None
    for number, (index, precision, graph) in enumerate(trunk, 1):
        problems = list(_graph(bundle, graph, run=can_run))
        found.problems += [f"segment {index} at {precision}: {problem}" for problem in problems]
        found.graphs += 1
        found.graphs_run += can_run and not problems
        on_progress("graphs", number, len(trunk))


def _graph(bundle: Bundle, graph: Graph, *, run: bool) -> Problems:
    data = bundle.path(graph.graph).read_bytes()
    try:
        model = onnx.load_model_from_string(data)
        yield from _outside(bundle, model, graph.weights)
        if run:
            _open(data, bundle.blobs.folder)
    except Exception as error:  # noqa: BLE001 - parser and runtime have error classes of their own, none of them public
        yield f"the graph does not load: {' '.join(str(error).split())}"


def _outside(bundle: Bundle, model: onnx.ModelProto, weights: Blob) -> Problems:
    """Initialisers must lie in the weights that the manifest names, and inside that file."""
    size = bundle.path(weights).stat().st_size
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place and place.get("location") != weights.digest:
            yield f"tensor {tensor.name} is looked for in {place.get('location')!r}, not in its weights"
        elif place and int(place.get("offset", 0)) + int(place.get("length", 0)) > size:
            yield f"tensor {tensor.name} ends behind the end of its weights"


def _open(data: bytes, folder: Path) -> None:
    import onnxruntime  # noqa: PLC0415 - heavy, and the toolchain works without it

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what fails is raised, too
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _layers(bundle: Bundle, found: Verified, on_progress: OnProgress) -> None:
    layers = bundle.manifest.layers
    for number, layer in enumerate(layers, 1):
        found.problems += [f"layer {layer.index}: {problem}" for problem in _layer(bundle, layer, found)]
        on_progress("experts and gates", number, len(layers))


def _layer(bundle: Bundle, layer: Layer, found: Verified) -> Problems:
    if layer.gate is not None:
        found.gates += 1
        yield from _gate(bundle, layer.gate, len(layer.experts))
    for expert in layer.experts:
        for precision in expert.blobs:
            found.experts += 1
            yield from _expert(bundle, expert, precision)


def _gate(bundle: Bundle, gate: Gate, experts: int) -> Problems:
    if gate.groups is not None and experts % gate.groups.count:
        yield f"gate has {gate.groups.count} groups, which do not divide its {experts} experts"
    try:
        tensors = read_tensors(bundle.path(gate.weights))
    except CorruptData as error:
        yield f"gate: {error}"
        return
    shapes = {"router": (bundle.manifest.trunk.hidden, experts), "bias": (experts,)}
    if "pick_bias" in tensors:
        shapes["pick_bias"] = (experts,)
    for name, shape in shapes.items():
        got = f"{tensors[name].dtype} {list(tensors[name].shape)}" if name in tensors else "no such tensor"
        if got != f"float32 {list(shape)}":
            yield f"gate tensor {name} must be float32 {list(shape)}: {got}"


def _expert(bundle: Bundle, expert: Expert, precision: Precision) -> Problems:
    trunk, blob = bundle.manifest.trunk, expert.blobs[precision]
    try:
        shape = ExpertShape(trunk.hidden, expert.width, precision, trunk.activation)
        expert_graph(shape, read_views(bundle.path(blob)), blob.digest)
    except MeshError as error:
        yield f"expert {expert.index} at {precision}: {error}"


def _text(bundle: Bundle) -> Problems:
    import tokenizers  # noqa: PLC0415 - --help need not wait for it

    about = bundle.manifest.tokenizer
    try:
        size = tokenizers.Tokenizer.from_file(str(bundle.path(about.vocabulary))).get_vocab_size()
        if size > bundle.manifest.trunk.vocabulary:
            yield f"the tokenizer has {size} tokens, the model only {bundle.manifest.trunk.vocabulary}"
    except Exception as error:  # noqa: BLE001 - the library raises bare exceptions
        yield f"the tokenizer does not load: {error}"
    if about.chat_template is not None:
        try:
            chat_template(bundle.path(about.chat_template).read_text(encoding="utf-8"))
        except CorruptData as error:
            yield str(error)
        except UnicodeDecodeError as error:
            yield f"the chat template is not UTF-8: {error}"
