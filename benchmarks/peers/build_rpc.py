"""llama.cpp's remote backend, for the llama.cpp that is installed: `build_rpc.py LIBRARY`.

The package is compiled without it, and compiling all of it once more takes a quarter of an hour. The backend is two
files that call nothing but ggml's public and internal functions, so these two are taken from the package's source, in
the version that is installed, and linked to the installed libraries.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REQUIREMENT = Path(__file__).with_name("requirements-llama.txt")
GGML = "vendor/llama.cpp/ggml"
FILES = ("src/ggml-rpc/ggml-rpc.cpp", "src/ggml-rpc/transport.cpp")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-DGGML_BACKEND_SHARED", "-DGGML_BACKEND_BUILD", "-DGGML_SHARED")


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise SystemExit(f"{command[0]}: {next((line for line in said if 'error' in line.lower()), 'it failed')}")


def installed_libraries() -> Path:
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        raise SystemExit("llama.cpp is not installed")
    return Path(found.origin).parent / "lib"


def fetch(folder: Path) -> Path:
    """The package's source as an archive."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run([*pip, "download", "--no-deps", "-r", str(REQUIREMENT), "-d", str(folder)])
    return next(folder.glob("*.tar.gz"))


def unpack(archive: Path, folder: Path) -> Path:
    """ggml's headers and the backend, and nothing else of 300 MB."""
    with tarfile.open(archive) as source:
        ggml = [member for member in source if f"/{GGML}/" in member.name]
        wanted = [member for member in ggml if member.name.endswith((".h", *FILES))]
        source.extractall(folder, wanted, filter="data")
    return next(folder.glob(f"*/{GGML}"))


def compile_backend(ggml: Path, libraries: Path, target: Path) -> None:
    sources = [str(ggml / file) for file in FILES]
    headers = [f"-I{ggml / 'include'}", f"-I{ggml / 'src'}"]
    links = [f"-L{libraries}", "-lggml-base", f"-Wl,-rpath,{libraries}", "-pthread"]
    run([os.environ.get("CXX", "c++"), *FLAGS, *headers, *sources, *links, "-o", str(target)])


def main() -> None:
    backend, libraries = Path(sys.argv[1]), installed_libraries()
    with tempfile.TemporaryDirectory(dir=backend.parent) as scratch:
        folder = Path(scratch)
        partial = folder / backend.name
        compile_backend(unpack(fetch(folder), folder), libraries, partial)
        partial.replace(backend)


if __name__ == "__main__":
    main()
