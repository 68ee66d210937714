"""What every test shares: a temporary folder of the session for processes that are killed before they can clean up."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _temporary_files_of_killed_processes() -> Iterator[None]:
    """Tests kill real processes; whatever those leave lies in one folder that ends with the session."""
    before, folder = os.environ.get("TMPDIR"), tempfile.mkdtemp(prefix="em-")
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    yield
    tempfile.tempdir = None
    if before is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = before
    shutil.rmtree(folder, ignore_errors=True)
