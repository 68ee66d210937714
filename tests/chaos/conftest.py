from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.parts import LONG, PROMPT, SHORT, Parts, parts
from expertmesh_common.bundle.blobs import Bundle
from models.tiny_bundle import greedy_ids, make_tiny_bundle


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle on disk."""
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def expected_long(tiny_folder: Path) -> list[int]:
    """Greedy tokens of a plain numpy forward pass."""
    return greedy_ids(Bundle(tiny_folder), PROMPT, LONG)


@pytest.fixture(scope="session")
def expected(expected_long: list[int]) -> list[int]:
    return expected_long[:SHORT]


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short path: unix sockets live below it."""
    return tmp_path_factory.mktemp("c")


@pytest.fixture
def mesh(tiny_folder: Path, folder: Path) -> Iterator[Parts]:
    with parts(tiny_folder, folder) as mesh:
        yield mesh
