from __future__ import annotations

from pathlib import Path

import pytest

from expertmesh_worker.runtime.executing import Runtime
from expertmesh_worker.runtime.lanes import Lanes
from rigs.loaded_runtime import loaded_runtime, stored_experts


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return stored_experts(tmp_path_factory.mktemp("blobs"))


@pytest.fixture
def lanes() -> Lanes:
    return Lanes(1)


@pytest.fixture
def runtime(blobs: list[Path], lanes: Lanes) -> Runtime:
    """It holds experts 0 to 4 of one layer."""
    return loaded_runtime(blobs, lanes)
