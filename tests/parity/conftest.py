import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_forge.importing.importer import ImportRequest, import_checkpoint
from models import hf_checkpoints as hf
from parity.agreement import share_apart
from parity.served_model import ServedModel

IDS = np.random.default_rng(3).integers(0, 256, 40).tolist()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Callable[..., Path]:
    """A tiny checkpoint of a family, written once per set of options."""
    root = tmp_path_factory.getbasetemp() / "checkpoints"
    return lambda family, **options: hf.cached_checkpoint(root, family, **options)


@pytest.fixture
def imported(tmp_path) -> Callable[..., Bundle]:
    """The bundle of a checkpoint."""

    def make(folder: Path, *, precisions: tuple[str, ...] = ("fp32",), context_tokens: int | None = None) -> Bundle:
        out = tmp_path / "bundle"
        import_checkpoint(ImportRequest(folder, out, precisions, name="tiny", context_tokens=context_tokens))
        return Bundle(out)

    return make


@pytest.fixture
def started() -> Callable[[Bundle], ServedModel]:
    """A bundle, served in this process."""
    served = []

    def start(bundle: Bundle) -> ServedModel:
        served.append(ServedModel(bundle))
        return served[-1]

    yield start
    for model in served:
        model.close()


@pytest.fixture
def serve(imported, started) -> Callable[..., ServedModel]:
    """A checkpoint, imported and served in this process."""
    return lambda folder, **options: started(imported(folder, **options))


@pytest.fixture
def copied(tmp_path) -> Callable[[Path], Path]:
    """A copy of a checkpoint that a test may change."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "altered"))

    return copy


@pytest.fixture
def disagreement(checkpoint, copied, serve) -> Callable[[str, Callable[[Path], None]], float]:
    """How far an altered checkpoint is from the one it was, as `share_apart` has it."""

    def measure(family: str, alter: Callable[[Path], None]) -> float:
        whole = checkpoint(family)
        altered = copied(whole)
        alter(altered)
        return share_apart(serve(altered).prompt_logits(IDS), hf.reference_logits(whole, IDS))

    return measure
