"""Execution providers: who computes an expert, proven by opening a session and asking it.

`cpu` is measured and tested. `cuda` needs the `worker-gpu` extra in an environment of its own; its sessions take and
return host memory, which is right for experts of a few megabytes at most and leaves device-resident rows to later work.
The list that onnxruntime prints proves nothing (it names CUDA on machines without a GPU), hence the proof.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from expertmesh_common.errors import InvalidInput, Precondition

Session = Any  # onnxruntime ships no type information

_FATAL: Final = 3
_ERROR: Final = 4
_FOLDER_KEY: Final = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True, slots=True)
class Provider:
    """One way to compute. `binds_host_memory`: a session may read and write the caller's numpy buffers in place."""

    name: str
    onnx_name: str
    binds_host_memory: bool
    options: Mapping[str, str] = field(default_factory=dict)

    def open(self, graph: bytes, weights_folder: Path, *, folds_constants: bool = False) -> Session:
        """A session of `graph` whose external weights lie in `weights_folder`.

        With `folds_constants`, what depends on no input is computed once, here, and kept in its place.

        Raises:
            Precondition: the session runs on another provider than this one.

        """
        settings = session_options(weights_folder)
        if folds_constants:
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        if self.onnx_name != "CPUExecutionProvider":
            settings.log_severity_level = _ERROR  # the fallback that we detect below needs no pages of warnings
        wanted = [(self.onnx_name, dict(self.options))]
        session = ort.InferenceSession(graph, settings, providers=wanted)
        found = session.get_providers()[0]
        if found != self.onnx_name:
            raise Precondition(f"provider {self.name} is not usable: a session for {self.onnx_name} came up on {found}")
        return session


def session_options(weights_folder: Path) -> ort.SessionOptions:
    """How an expert's session runs: one thread, nothing spinning, and no memory that outlives it."""
    options = ort.SessionOptions()
    # Arenas keep what they once held, so an unloaded expert would not return its memory.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    # Parallelism is by lanes and processes; a second spinning thread on a shared core makes everything slower.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # The templates are already what the optimiser would make of them; without it a session costs 42 kB less.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _FATAL
    options.add_session_config_entry(_FOLDER_KEY, str(weights_folder))
    return options


def _cpu() -> Provider:
    return Provider("cpu", "CPUExecutionProvider", binds_host_memory=True)


def _cuda() -> Provider:
    """Not proven on a GPU by the tests of this repository when none is there: opening proves it where it runs."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise Precondition(
            "provider cuda needs onnxruntime-gpu: install expertmesh[worker-gpu] in an environment without onnxruntime"
        )
    # Without a fixed limit the CUDA arena doubles itself, which no budget can account for.
    return Provider("cuda", "CUDAExecutionProvider", False, {"arena_extend_strategy": "kSameAsRequested"})


_REGISTRY: Final[Mapping[str, Callable[[], Provider]]] = {"cpu": _cpu, "cuda": _cuda}


def supported() -> tuple[str, ...]:
    """Names that `provider` knows."""
    return tuple(_REGISTRY)


def provider(name: str) -> Provider:
    """The provider `name`, after a session of it computed something.

    Raises:
        InvalidInput: there is no such provider.
        Precondition: it does not work on this machine; the message says what to install.

    """
    if name not in _REGISTRY:
        raise InvalidInput(f"provider {name!r} is unknown: supported are {', '.join(supported())}")
    found = _REGISTRY[name]()
    try:
        session = found.open(_probe_graph(), Path())
        session.run(None, {"x": np.zeros((1, 1), np.float32)})
    except Precondition as error:
        raise Precondition(
            f"{error}; check the driver and the CUDA and cuDNN libraries, or use --provider cpu"
        ) from error
    return found


def _probe_graph() -> bytes:
    shape = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "probe", shape[:1], shape[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data
