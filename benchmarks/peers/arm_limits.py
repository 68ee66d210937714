"""What the machine gives to anybody: bytes read per second, and products of matrices, with so many threads.

{"do": "read"} -> {"per_s": bytes}    {"do": "multiply"} -> {"fp32": multiplications per s, "int8": ..}

Memory is read in one stream out of huge pages, where the kernel has them: more than an engine with ordinary pages can
get. Multiplications are the better of two large products by the best kernels at hand, float32 and 8-bit integers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper

STREAM_BYTES = 512 << 20
ROWS, SIDE = 256, 1024
REPEATS = 5


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest repeat, after one to warm up."""
    work()
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def integer_product(threads: int) -> Callable[[], object]:
    weights = np.random.default_rng(0).integers(-127, 127, (SIDE, SIDE), np.int8)
    rows = np.random.default_rng(1).integers(0, 255, (ROWS, SIDE), np.uint8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["rows", "weights"], ["out"])],
        "product",
        [helper.make_tensor_value_info("rows", TensorProto.UINT8, rows.shape)],
        [helper.make_tensor_value_info("out", TensorProto.INT32, (ROWS, SIDE))],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"rows": rows})


class Limits:
    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._stream = torch.from_numpy(np.ones(STREAM_BYTES // 4, np.float32))
        self._floats = torch.rand(ROWS, SIDE), torch.rand(SIDE, SIDE)
        self._integers = integer_product(threads)

    def read(self) -> dict[str, float]:
        return {"per_s": STREAM_BYTES / fastest(self._stream.sum)}

    def multiply(self) -> dict[str, float]:
        count = ROWS * SIDE * SIDE
        rows, weights = self._floats
        return {"fp32": count / fastest(lambda: rows @ weights), "int8": count / fastest(self._integers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    limits = Limits(parser.parse_args().threads)
    asks = {"read": limits.read, "multiply": limits.multiply, "tell": lambda: {"version": np.__version__}}
    for line in sys.stdin:
        print(json.dumps(asks[json.loads(line)["do"]]()), flush=True)


if __name__ == "__main__":
    main()
