"""Generate the Python stubs of `protos/**/*.proto` into `protos/generated`, or prove them fresh with `--check`.

Needs grpcio-tools 1.76.0 and mypy-protobuf 5.1.0 in its interpreter (`make protos` makes that environment).
"""

from __future__ import annotations

import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
GENERATED = ROOT / "generated"
PACKAGE = "expertmesh_api"


def run_protoc(out: Path) -> None:
    """Write messages, services and type stubs of every .proto under `out`."""
    sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / PACKAGE).rglob("*.proto"))
    plugin = Path(sys.executable).parent / "protoc-gen-mypy_grpc"
    command = [
        sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT}",
        f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}",
        f"--plugin=protoc-gen-mypy_grpc={plugin}", f"--mypy_grpc_out=quiet,only_async:{out}",
        *sources,
    ]  # fmt: skip
    subprocess.run(command, check=True, cwd=ROOT)


def drop_empty_services(out: Path) -> None:
    """Remove the service modules of files that declare none."""
    for proto in (ROOT / PACKAGE).rglob("*.proto"):
        if "\nservice " in proto.read_text():
            continue
        stem = out / proto.relative_to(ROOT).with_suffix("")
        for suffix in ("_pb2_grpc.py", "_pb2_grpc.pyi"):
            Path(f"{stem}{suffix}").unlink(missing_ok=True)


def make_packages(out: Path) -> None:
    for folder in [out / PACKAGE, *(p for p in (out / PACKAGE).rglob("*") if p.is_dir())]:
        (folder / "__init__.py").touch()
    (out / PACKAGE / "py.typed").touch()


def generate(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    run_protoc(out)
    drop_empty_services(out)
    make_packages(out)


def differences(fresh: Path, kept: Path) -> list[str]:
    """Names of generated files that are missing, left over, or not the same."""
    names = {p.relative_to(base) for base in (fresh, kept) for p in base.rglob("*.py*") if "__pycache__" not in p.parts}
    return sorted(
        str(n)
        for n in names
        if not ((fresh / n).exists() and (kept / n).exists() and filecmp.cmp(fresh / n, kept / n, shallow=False))
    )


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        with tempfile.TemporaryDirectory() as folder:
            generate(Path(folder))
            stale = differences(Path(folder), GENERATED)
        for name in stale:
            print(f"stale: protos/generated/{name}; run `make protos`")
        return 1 if stale else 0
    generate(GENERATED)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
