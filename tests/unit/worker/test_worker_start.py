"""What a worker does before anything else."""

import pytest

from expertmesh_common.errors import InvalidInput
from expertmesh_worker import process
from expertmesh_worker.settings import WorkerSettings


def test_buffers_are_placed_side_by_side_before_anything_is_loaded(monkeypatch, tmp_path) -> None:
    happened = []

    def no_provider(name: str) -> None:
        happened.append("provider")
        raise InvalidInput("none here")

    monkeypatch.setattr(process, "place_side_by_side", lambda: happened.append("placed"))
    monkeypatch.setattr(process, "provider", no_provider)
    with pytest.raises(InvalidInput, match="none here"):
        process.run(WorkerSettings(join="127.0.0.1:1", worker_id="w", cache=tmp_path))

    assert happened == ["placed", "provider"]
