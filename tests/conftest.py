"""What every test shares: a temporary folder for processes that are killed, and compiled modules for all that start."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

# How long an example takes says something of the machine, not of what is tested.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

COMPILED = Path(__file__).parents[1] / "build" / "pycache"


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


@pytest.fixture(scope="session", autouse=True)
def _control_c_is_heard() -> Iterator[None]:
    """A shell starts what it puts in the background with Ctrl-C ignored, and every process of a test inherits that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def _modules_are_compiled_once() -> Iterator[None]:
    """Tests start hundreds of processes; each would compile every module where the environment forbids to keep them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPYCACHEPREFIX", str(COMPILED))
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _oracles_take_one_core() -> Iterator[None]:
    """Their matrices are small; threads that wait for each other on busy cores take many times as long."""
    with threadpool_limits(1, "blas"):
        yield
