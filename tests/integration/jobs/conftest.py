from pathlib import Path

import pytest

from models import hf_checkpoints as hf
from models.tiny_bundle import make_tiny_bundle
from rigs.job_mesh import JobMesh, job_mesh


@pytest.fixture(scope="session")
def served(tmp_path_factory) -> Path:
    """A bundle for the controller to serve."""
    return make_tiny_bundle(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """3 layers of 7 experts: imported in a fraction of a second."""
    return hf.cached_checkpoint(tmp_path_factory.getbasetemp() / "checkpoints", "mixtral")


@pytest.fixture(scope="session")
def long_checkpoint(tmp_path_factory) -> Path:
    """24 layers of 32 experts: its import lasts long enough to be met in its middle."""
    root = tmp_path_factory.getbasetemp() / "checkpoints"
    return hf.cached_checkpoint(root, "mixtral", num_hidden_layers=24, num_local_experts=32)


@pytest.fixture
async def mesh(tmp_path, served):
    async with job_mesh(tmp_path, served) as running:
        assert isinstance(running, JobMesh)
        yield running
