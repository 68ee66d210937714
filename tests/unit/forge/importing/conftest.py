import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from models import hf_checkpoints as hf


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Callable[..., Path]:
    """A tiny checkpoint of a family, written once per set of options; nobody may change it."""
    root = tmp_path_factory.getbasetemp() / "checkpoints"
    return lambda family="mixtral", **options: hf.cached_checkpoint(root, family, **options)


@pytest.fixture
def mixtral(checkpoint, tmp_path) -> Path:
    """A copy of a Mixtral checkpoint that a test may change: 3 layers of 7 experts."""
    return Path(shutil.copytree(checkpoint("mixtral"), tmp_path / "mixtral"))
