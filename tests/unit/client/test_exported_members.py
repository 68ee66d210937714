"""The SDK's face is what `__all__` says, and importing it stays cheap."""

from __future__ import annotations

import subprocess
import sys
import types

import expertmesh


def test_all_lists_every_public_name_in_order():
    found = [
        name
        for name, value in vars(expertmesh).items()
        if not isinstance(value, types.ModuleType) and (not name.startswith("_") or name == "__version__")
    ]
    assert expertmesh.__all__ == sorted(found)


def test_the_sdk_imports_nothing_but_grpc_protobuf_and_numpy():
    script = (
        "import sys, sysconfig; before = set(sys.modules); import expertmesh;"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before};"
        "print(*sorted(m for m in new if m not in sys.stdlib_module_names and not m.startswith('_')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    # grpc itself looks for its health and reflection packages; Cython is inside grpc.
    by_grpc = {"cython_runtime", "grpc_health", "grpc_reflection", "grpc_tools", "grpc_status", "typing_extensions"}
    assert set(done.stdout.split()) - by_grpc <= {"expertmesh", "expertmesh_api", "google", "grpc", "numpy"}
