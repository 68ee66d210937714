"""Opening the trunk: its runs with the experts that they hold, and its head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import Precision, Segment
from expertmesh_common.bundle.tensors import Array, read_tensors
from expertmesh_common.errors import InvalidInput
from expertmesh_common.graphs.local_experts import Stacked, stack
from expertmesh_common.graphs.stitching import join
from expertmesh_controller.gateway.trunk.runs import Run

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["open_graph", "open_head", "open_run"]


def open_run(bundle: Bundle, run: Run, precision: Precision, threads: int) -> InferenceSession:
    """A session for the layers of a run, verified blobs, `threads` threads that sleep when idle.

    One segment in front of experts elsewhere is that segment as it lies in the bundle; others are joined, and call
    their caches `past_key_<layer>` and so on.

    Raises:
        InvalidInput: the bundle has no trunk at this precision.
        NotHere: a blob is missing.
        CorruptData: a blob is not what its digest says.

    """
    graphs = [_graph(bundle, bundle.manifest.trunk.segments[layer], precision) for layer in run.layers]
    if run.asks and len(graphs) == 1:
        return open_graph(graphs[0], bundle, threads)
    inside = [_stacked(bundle, layer, precision) for layer in (run.layers[:-1] if run.asks else run.layers)]
    blocks = [None if stacked is None else stacked.block for stacked in inside]
    graph = join(graphs, [*blocks, None] if run.asks else blocks, first=run.first, ends_in_rows=run.asks)
    memory: dict[str, Array] = {}
    for layer, stacked in zip(run.layers, inside, strict=False):
        if stacked is not None:
            memory |= {f"l{layer}_{name}": array for name, array in stacked.values.items()}
    return open_graph(graph, bundle, threads, memory, spins=threads > 1)


def open_head(bundle: Bundle, precision: Precision, threads: int) -> InferenceSession:
    """The last segment alone. Errors as `open_run`."""
    return open_graph(_graph(bundle, bundle.manifest.trunk.segments[-1], precision), bundle, threads)


def open_graph(
    model: bytes, bundle: Bundle, threads: int, memory: Mapping[str, Array] | None = None, *, spins: bool = False
) -> InferenceSession:
    """A session over `model`, whose external initialisers lie in the bundle's blobs or, by name, in `memory`.

    Threads that spin are quick between the many small operators of one call, where each has a core of its own.

    Arrays of `memory` may go once the session is open if the runtime repacks them; it keeps those that it does not.
    """
    import onnxruntime  # noqa: PLC0415 - heavy, and only here

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
    if spins:  # within a call only
        options.add_session_config_entry("session.force_spinning_stop", "1")
    folder = str(bundle.blobs.folder)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    if memory:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in memory.values()]
        options.add_external_initializers(list(memory), values)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _graph(bundle: Bundle, segment: Segment, precision: Precision) -> bytes:
    graph = segment.graphs.get(precision)
    if graph is None:
        known = ", ".join(bundle.manifest.precisions)
        raise InvalidInput(f"model {bundle.manifest.name} has no trunk at precision {precision}; it has {known}")
    bundle.path(graph.weights)  # verified before the runtime maps it
    return bundle.path(graph.graph).read_bytes()


def _stacked(bundle: Bundle, index: int, precision: Precision) -> Stacked | None:
    manifest = bundle.manifest
    layer = manifest.layers[index]
    if layer.gate is None:
        return None
    return stack(
        layer, precision, manifest.trunk.activation,
        router=read_tensors(bundle.path(layer.gate.weights)),
        experts=[read_tensors(bundle.path(expert.blobs[precision])) for expert in layer.experts],
        trunk=read_tensors(bundle.path(manifest.trunk.segments[index].graphs[precision].weights)),
    )  # fmt: skip
