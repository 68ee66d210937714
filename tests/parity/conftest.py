import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_forge.importing.importer import ImportRequest, import_checkpoint
from models import hf_checkpoints as hf
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
def serve(imported) -> Callable[..., ServedModel]:
    """A checkpoint, imported and served in this process."""
    served = []

    def start(folder: Path, **options: object) -> ServedModel:
        served.append(ServedModel(imported(folder, **options)))
        return served[-1]

    yield start
    for model in served:
        model.close()


@pytest.fixture
def copied(tmp_path) -> Callable[[Path], Path]:
    """A copy of a checkpoint that a test may change."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "altered"))

    return copy
