"""llama.cpp with the experts' tensors on a server of its own and everything else here: `... MODEL LIBRARY`.

What its programs call `--n-gpu-layers 0 --override-tensor exps=RPC0`.
"""

from __future__ import annotations

import argparse
import ctypes
from functools import partial
from pathlib import Path

import llama_cpp as lib
from arm_llama import Llama
from llama_rpc import Remote, Server
from serving import serve


class Override(ctypes.Structure):
    """Tensors whose names match go to buffers of that type; an empty one ends a list."""

    _fields_ = (("pattern", ctypes.c_char_p), ("memory", ctypes.c_void_p))


class LlamaRemote(Llama):
    def __init__(self, file: Path, threads: int, backend: Path) -> None:
        self._server = Server(backend, threads)
        self._remote = Remote(backend)
        before_mb = self._server.memory_mb
        super().__init__(file, threads)
        self.about["experts"] = f"{self._server.memory_mb - before_mb:.0f} MB on the server, over TCP"

    def _load(self, file: Path) -> lib.llama_model_p | None:
        overrides = (Override * 2)(Override(b"exps", self._remote.memory_of(self._server.endpoint)))
        settings = lib.llama_model_default_params()
        settings.n_gpu_layers = 0
        settings.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
        return lib.llama_model_load_from_file(str(file).encode(), settings)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("model")
    parser.add_argument("backend", type=Path)
    own, rest = parser.parse_known_args()
    serve(partial(LlamaRemote, backend=own.backend), [own.model, *rest])
