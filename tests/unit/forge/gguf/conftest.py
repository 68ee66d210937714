from collections.abc import Callable
from pathlib import Path

import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_forge.importing.importer import ImportRequest, import_checkpoint
from models import hf_checkpoints as hf

# The format cannot say which layers of a Qwen have a window.
_OPTIONS = {"mixtral": {"sliding_window": None}, "qwen2_moe": {"use_sliding_window": False}}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Callable[..., Path]:
    """A tiny checkpoint of a family, written once per set of options; nobody may change it."""
    root = tmp_path_factory.getbasetemp() / "checkpoints"
    return lambda family="mixtral", **options: hf.cached_checkpoint(root, family, **_OPTIONS.get(family, {}), **options)


@pytest.fixture
def bundle_of(tmp_path) -> Callable[..., Bundle]:
    """Import into a folder of the test's own."""

    def run(source: Path, **options: object) -> Bundle:
        out = tmp_path / "bundles" / source.name
        import_checkpoint(ImportRequest(source, out, **{"precisions": ("fp32",), **options}))
        return Bundle(out)

    return run
