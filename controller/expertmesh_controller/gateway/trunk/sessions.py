"""Opening the trunk's segments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import Precision, Segment
from expertmesh_common.bundle.tensors import Array
from expertmesh_common.errors import InvalidInput

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["open_graph", "open_head", "open_segments"]


def open_segments(bundle: Bundle, precision: Precision, threads: int) -> list[InferenceSession]:
    """One session per segment, verified blobs, `threads` threads each that sleep when idle.

    Raises:
        InvalidInput: the bundle has no trunk at this precision.
        NotHere: a blob is missing.
        CorruptData: a blob is not what its digest says.

    """
    return [_open(bundle, segment, precision, threads) for segment in bundle.manifest.trunk.segments]


def open_head(bundle: Bundle, precision: Precision, threads: int) -> InferenceSession:
    """The last segment alone. Errors as `open_segments`."""
    return _open(bundle, bundle.manifest.trunk.segments[-1], precision, threads)


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


def _open(bundle: Bundle, segment: Segment, precision: Precision, threads: int) -> InferenceSession:
    graph = segment.graphs.get(precision)
    if graph is None:
        known = ", ".join(bundle.manifest.precisions)
        raise InvalidInput(f"model {bundle.manifest.name} has no trunk at precision {precision}; it has {known}")
    bundle.path(graph.weights)
    return open_graph(bundle.path(graph.graph).read_bytes(), bundle, threads)
