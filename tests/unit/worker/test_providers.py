"""A provider is what a session really runs on, not what a list says."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from expertmesh_common.errors import InvalidInput, Precondition
from expertmesh_worker import providers
from expertmesh_worker.providers import Provider, provider
from expertmesh_worker.runtime.instance import ExpertInstance
from expertmesh_worker.runtime.lanes import Lane
from models.made_experts import HIDDEN, SMALL, reference, store_expert


def test_an_unknown_provider_lists_the_known_ones():
    with pytest.raises(InvalidInput, match="'tpu' is unknown: supported are cpu, cuda"):
        provider("tpu")


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="onnxruntime-gpu is installed")
def test_cuda_without_its_runtime_says_what_to_install():
    with pytest.raises(Precondition, match=r"expertmesh\[worker-gpu\]"):
        provider("cuda")


def test_a_provider_that_is_listed_but_comes_up_on_another_is_refused(monkeypatch):
    class Fallen:
        """A session as onnxruntime-gpu makes it on a machine without a GPU."""

        def __init__(self, *_args, **_options):
            pass

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(providers.ort, "InferenceSession", Fallen)

    with pytest.raises(Precondition, match=r"CUDAExecutionProvider came up on CPUExecutionProvider.*--provider cpu"):
        provider("cuda")


@pytest.mark.parametrize("binds_host_memory", [True, False])
def test_bound_and_copied_rows_give_the_same(tmp_path, binds_host_memory):
    path, _ = store_expert(tmp_path, SMALL, 4)
    backend = Provider("cpu", "CPUExecutionProvider", binds_host_memory)
    seat = ExpertInstance(SMALL, path, backend, [Lane(0)]).seats[0]
    seat.row_in[:] = np.random.default_rng(1).standard_normal(HIDDEN)

    seat.one()

    expected = reference(SMALL, 4, seat.row_in)
    np.testing.assert_allclose(seat.row_out, expected, atol=1e-5 * np.abs(expected).max())
    assert (seat.rows, seat.busy_ns > 0) == (1, True)
