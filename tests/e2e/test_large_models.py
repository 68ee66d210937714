"""A model several times larger than any worker: imported in little memory, served by five workers that share it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from chaos.parts import Parts, nodes, parts
from e2e.running import running_up, until
from expertmesh import Client, DeadlineExceeded, Unavailable
from expertmesh_common.bundle.manifest import Manifest, read_manifest
from expertmesh_common.graphs.expert import ExpertShape, resident_bytes
from models.large_checkpoint import (
    EXPERTS,
    HIDDEN,
    LAYER_BYTES,
    LAYERS,
    WIDTH,
    greedy_ids,
    write_large_checkpoint,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads peaks that Linux keeps per process"),
]

PROMPT = [77, 111, 69]
COUNT = 8
SPARE_BYTES = 300 * 10**6
"""What a process takes beside the experts or the trunk that it holds: the interpreter, libraries, buffers."""
TOO_SMALL = (0.30, 0.22, 0.16, 0.13, 0.09)  # of all experts: 90 % together
RESIDENT_BYTES = resident_bytes(ExpertShape(HIDDEN, WIDTH, "fp32"))
FAILED, USAGE = 1, 2

# rusage would begin with the peak of whoever started the process.
_WITH_PEAK = """
import sys
from pathlib import Path
from expertmesh.cli.main import run
code = run(sys.argv[2:])
Path(sys.argv[1]).write_text(Path("/proc/self/status").read_text())
sys.exit(code)
"""


@dataclass(frozen=True)
class Large:
    """The imported bundle, and the most memory that the importing process ever had."""

    folder: Path
    manifest: Manifest
    import_peak_bytes: int

    @property
    def expert_bytes(self) -> int:
        return self.manifest.expert_bytes("fp32")

    @property
    def trunk_bytes(self) -> int:
        return sum(segment.graphs["fp32"].weights.size_bytes for segment in self.manifest.trunk.segments)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Iterator[Large]:
    """Nearly three gigabytes with the checkpoint, which goes when the bundle is there; the bundle goes at the end."""
    root = tmp_path_factory.mktemp("large")
    checkpoint, bundle, status = write_large_checkpoint(root / "checkpoint"), root / "bundle", root / "status"
    command = ["model", "import", str(checkpoint), "--out", str(bundle), "--precisions", "fp32", "--name", "large"]
    subprocess.run([sys.executable, "-c", _WITH_PEAK, str(status), *command], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(checkpoint)
    yield Large(bundle, read_manifest(bundle), peak_bytes(status))
    shutil.rmtree(root)


@pytest.fixture
def folder(tmp_path_factory) -> Iterator[Path]:
    """A short path for sockets, emptied at the end: a cache holds the whole model once more."""
    made = tmp_path_factory.mktemp("e")
    yield made
    shutil.rmtree(made)


def peak_bytes(status: Path) -> int:
    """The most resident memory that a process ever had, from its status in /proc."""
    return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024


def peaks_of(pid: int) -> dict[int, int]:
    """The peaks of a process and all its descendants."""
    peaks: dict[int, int] = {}
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a helper that has just ended
            peaks[process.pid] = peak_bytes(Path(f"/proc/{process.pid}/status"))
    return peaks


def command_line(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "expertmesh.cli.main", *arguments],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_an_import_never_holds_three_of_the_largest_layer_with_everything_else_that_it_needs(large):
    assert large.import_peak_bytes <= 3 * LAYER_BYTES
    assert large.expert_bytes > 2 * 3 * LAYER_BYTES
    assert large.trunk_bytes < 0.15 * (large.trunk_bytes + large.expert_bytes)


def test_five_workers_serve_a_model_that_none_of_them_could_hold(large, folder):
    arguments = ["--model", str(large.folder), "--listen", "127.0.0.1:0", "--workers", "5", "--budget-share", "0.22"]
    expected, margin = greedy_ids(PROMPT, COUNT)
    assert margin > 0.1
    with running_up(folder, arguments) as up:
        with Client(up.address) as client:
            found = client.complete(prompt_ids=PROMPT, max_tokens=COUNT, ignore_eos=True).token_ids
            assert list(found) == expected
            workers, experts = client.nodes(), client.experts()
        assert len(experts) == EXPERTS * LAYERS
        assert all(expert.worker_ids for expert in experts)
        for node in workers:
            assert 0 < node.resident_bytes <= node.budget_bytes < large.expert_bytes / 4
            assert node.experts < len(experts) / 4

        budgets = {up.pids[node.worker_id]: node.budget_bytes for node in workers}
        peaks = peaks_of(up.process.pid)
        assert len(budgets) == 5
        for pid, budget in budgets.items():
            assert peaks[pid] <= budget + SPARE_BYTES, f"a worker had {peaks[pid]} bytes with a budget of {budget}"
        # Whoever holds no expert: controller with its gateway, store, job worker, supervisor.
        for pid in peaks.keys() - budgets.keys():
            assert peaks[pid] <= large.trunk_bytes + SPARE_BYTES, f"{psutil.Process(pid)} had {peaks[pid]} bytes"
        report("served", import_peak=large.import_peak_bytes, trunk=large.trunk_bytes, peaks=peaks, budgets=budgets)


def test_up_refuses_at_once_what_its_workers_cannot_hold_and_says_how_much_is_missing(large):
    done = command_line("up", "--model", str(large.folder), "--workers", "5", "--budget-share", "0.18")
    assert done.returncode == USAGE
    whole = large.expert_bytes / 1e6
    words = " ".join(done.stderr.split())
    assert f"{whole * 0.1:.1f} of {whole:.1f} MB are missing: raise --workers or --budget-share" in words


def test_whoever_asks_a_mesh_that_is_too_small_is_told_how_much_is_missing(large, folder):
    with parts(large.folder, folder) as mesh:
        mesh.controller("--precision", "fp32", "--expected-workers", "5")
        budgets = [int(share * large.expert_bytes) for share in TOO_SMALL]
        for number, budget in enumerate(budgets):
            mesh.worker(f"w{number}", "--cache", str(folder / "cache"), budget=budget)
        lack = large.expert_bytes - sum(budgets)
        with mesh.client() as client:
            missing = until_full(mesh, client, budgets)
            assert lack <= missing <= lack + 5 * RESIDENT_BYTES  # less than an expert is left over on every worker
            assert client.served_models()[0].missing_bytes == missing
            began = time.monotonic()
            with pytest.raises((Unavailable, DeadlineExceeded)) as failed:
                client.complete(prompt_ids=PROMPT, max_tokens=COUNT, ignore_eos=True, deadline_s=5)
            waited_s = time.monotonic() - began
            assert waited_s < 10
        access = ["--server", mesh.address]
        status, doctor = command_line("status", *access), command_line("doctor", *access)
        report("too small", status=status.stdout, doctor=doctor.stdout, client=str(failed.value), waited_s=waited_s)
        assert (status.returncode, doctor.returncode) == (FAILED, FAILED)
        assert f"5 workers lack {lack / 1e6:.1f} MB for all experts: add one, or raise --budget" in status.stdout
        assert f"{missing / 1e6:.1f} MB are on no worker" in doctor.stdout
        assert "answer of large" not in doctor.stdout  # asking would take as long as the doctor's patience
        said = f"no room for {missing / 1e6:.1f} MB of the model's experts: add a worker, or raise --budget"
        assert said in str(failed.value)


def until_full(mesh: Parts, client: Client, budgets: Sequence[int]) -> int:
    """Wait until every worker holds what it can; returns the bytes for which no worker has room."""

    def full() -> bool:
        found = nodes(client).values()
        return len(found) == len(budgets) and all(n.budget_bytes - n.resident_bytes < RESIDENT_BYTES for n in found)

    until(full, 120, mesh.story)
    return client.wait_ready(deadline_s=2).missing_bytes


def report(what: str, **figures: object) -> None:
    """For the person who measures, with `pytest -s`."""
    print(json.dumps({"what": what, **figures}))
