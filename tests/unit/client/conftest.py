from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from unit.client.scripted_mesh import Behaviour, ScriptedMesh


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[object]:
    """Start a mesh that behaves as scripted; ended after the test."""
    with contextlib.ExitStack() as stack:

        def start(*script: Behaviour) -> ScriptedMesh:
            return stack.enter_context(ScriptedMesh(tmp_path, script))

        yield start
