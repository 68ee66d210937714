"""Opening the trunk's segments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import Graph, Precision
from expertmesh_common.errors import InvalidInput

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["open_segments"]


def open_segments(bundle: Bundle, precision: Precision, threads: int) -> list[InferenceSession]:
    """One session per segment, verified blobs, `threads` threads each that sleep when idle.

    Raises:
        InvalidInput: the bundle has no trunk at this precision.
        NotHere: a blob is missing.
        CorruptData: a blob is not what its digest says.

    """
    graphs = [segment.graphs.get(precision) for segment in bundle.manifest.trunk.segments]
    found = [graph for graph in graphs if graph is not None]
    if len(found) < len(graphs):
        known = ", ".join(bundle.manifest.precisions)
        raise InvalidInput(f"model {bundle.manifest.name} has no trunk at precision {precision}; it has {known}")
    return [_open(bundle, graph, threads) for graph in found]


def _open(bundle: Bundle, graph: Graph, threads: int) -> InferenceSession:
    import onnxruntime  # noqa: PLC0415 - heavy, and only here

    bundle.path(graph.weights)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    folder = str(bundle.blobs.folder)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    model = bundle.path(graph.graph).read_bytes()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
