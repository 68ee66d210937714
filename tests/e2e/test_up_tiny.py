"""A whole mesh from one command: it answers right, survives what it promises to survive, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from e2e.running import RunningUp, disturbed, gone, running_up, until
from expertmesh import Client, ExpertmeshError, ResumePolicy, Unauthenticated
from expertmesh_common.bundle.blobs import Bundle
from models.tiny_bundle import greedy_ids

PROMPT = [72, 101, 108, 108, 111, 32, 119, 111, 114, 108, 100]
COUNT = 24
LONG = 400  # tokens; the engine runs ahead of who reads, so an answer must be long to be met in its middle


@pytest.fixture(scope="session")
def expected(tiny_folder) -> list[int]:
    """Greedy tokens of a plain numpy forward pass."""
    return greedy_ids(Bundle(tiny_folder), PROMPT, COUNT)


@pytest.fixture(scope="session")
def undisturbed(tiny_folder) -> list[int]:
    """The same for a long answer."""
    return greedy_ids(Bundle(tiny_folder), PROMPT, LONG)


def up_arguments(tiny_folder, *more: str, listen: str = "127.0.0.1:0") -> list[str]:
    return ["--model", str(tiny_folder), "--listen", listen, *more]


def answer(up: RunningUp, **options) -> tuple[int, ...]:
    with Client(up.address, token=up.token) as client:
        return client.complete(prompt_ids=PROMPT, max_tokens=COUNT, ignore_eos=True, **options).token_ids


def long_answer(up: RunningUp, act) -> tuple[list[int], float]:
    """Stream an answer of LONG tokens, call `act` early in it; the ids and the longest pause after that."""
    with Client(up.address, token=up.token) as client:
        stream = client.generate(prompt_ids=PROMPT, max_tokens=LONG, ignore_eos=True, deadline_s=60)
        return disturbed(stream, 20, act)


@pytest.mark.parametrize("transport", ["unix", "tcp", "grpc", "unix --spin-us 500"])
def test_a_mesh_answers_what_a_dense_pass_computes_whatever_the_transport(tiny_folder, folder, expected, transport):
    arguments = ["--store", "memory", "--transport", *transport.split()]
    with running_up(folder, up_arguments(tiny_folder, *arguments)) as up:
        assert list(answer(up)) == expected
        with Client(up.address) as client:
            nodes = client.nodes()
            assert [node.worker_id for node in nodes] == ["worker-1", "worker-2", "worker-3"]
            assert all(0 < node.resident_bytes <= node.budget_bytes for node in nodes)
            assert {e.index for e in client.experts() if e.worker_ids} == {0, 1, 2, 3}
        assert up.stop() == 0


def test_ctrl_c_ends_every_process_and_leaves_no_temporary_file(tiny_folder, folder):
    with running_up(folder, up_arguments(tiny_folder)) as up:
        children = psutil.Process(up.process.pid).children(recursive=True)
        assert len(children) >= 5  # a controller with its store, three workers
        assert up.stop(signal.SIGINT) == 0
    assert all(gone(child.pid) for child in children)
    assert list((folder / "tmp").iterdir()) == []
    assert not up.ready_file.exists()


def test_no_process_outlives_a_killed_up(tiny_folder, folder):
    with running_up(folder, up_arguments(tiny_folder)) as up:
        children = psutil.Process(up.process.pid).children(recursive=True)
        up.process.kill()
        up.process.wait()
        until(lambda: all(gone(child.pid) for child in children), 20)


def test_ctrl_c_before_it_is_ready_ends_everything_too(tiny_folder, folder):
    (folder / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "expertmesh.cli.main", "up", *up_arguments(tiny_folder, "--cache", str(folder))],
        env={**os.environ, "TMPDIR": str(folder / "tmp")}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    parent = psutil.Process(process.pid)
    until(lambda: len(parent.children()) >= 1, 20)
    children = parent.children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert all(gone(child.pid) for child in children)
    assert list((folder / "tmp").iterdir()) == []


def test_a_worker_killed_in_mid_answer_changes_no_token_when_it_has_replicas(tiny_folder, folder, undisturbed):
    with running_up(folder, up_arguments(tiny_folder, "--budget-share", "1.0", "--store", "memory")) as up:
        victim = up.pids["worker-2"]
        ids, pause_s = long_answer(up, lambda: os.kill(victim, signal.SIGKILL))
        assert ids == undisturbed
        assert pause_s < 3.0
        until(lambda: "worker-2 was ended by SIGKILL" in up.said, 10)


def test_a_worker_killed_in_mid_answer_changes_no_token_when_its_experts_must_be_loaded_again(
    tiny_folder, folder, undisturbed
):
    with running_up(folder, up_arguments(tiny_folder, "--workers", "2", "--budget-share", "0.5")) as up:
        victim = up.pids["worker-2"]
        ids, pause_s = long_answer(up, lambda: os.kill(victim, signal.SIGKILL))
        assert ids == undisturbed
        assert 0.2 < pause_s < 30.0  # no worker starts faster: the kill met the answer in its middle
        up.refresh()
        assert up.pids["worker-2"] not in {None, victim}


def test_a_worker_that_is_asked_to_end_loses_no_call(tiny_folder, folder, expected):
    with running_up(folder, up_arguments(tiny_folder, "--budget-share", "1.0", "--store", "memory")) as up:
        wrong: list[object] = []
        stop = threading.Event()

        def keep_asking() -> None:
            # No resume: whatever the SDK would repair counts as lost here.
            with Client(up.address, resume=ResumePolicy(attempts=1, first_attempts=1)) as client:
                while not stop.is_set():
                    try:
                        got = client.complete(prompt_ids=PROMPT, max_tokens=COUNT, ignore_eos=True).token_ids
                    except ExpertmeshError as error:
                        wrong.append(error)
                        return
                    if list(got) != expected:
                        wrong.append(got)

        asking = threading.Thread(target=keep_asking)
        asking.start()
        os.kill(up.pids["worker-1"], signal.SIGTERM)
        until(lambda: "worker-1 ended with code 0" in up.said, 30, lambda: up.said)
        stop.set()
        asking.join()
        assert wrong == []


def test_a_controller_that_was_killed_comes_back_and_the_sdk_continues_the_answer(tiny_folder, folder, undisturbed):
    with running_up(folder, up_arguments(tiny_folder)) as up:
        victim = up.pids["controller"]
        ids, _ = long_answer(up, lambda: os.kill(victim, signal.SIGKILL))
        assert ids == undisturbed
        assert "controller was ended by SIGKILL" in up.said


def test_whoever_listens_to_other_machines_demands_its_token_and_local_clients_need_not_name_it(
    tiny_folder, folder, expected, monkeypatch
):
    with running_up(folder, up_arguments(tiny_folder, "--store", "memory", listen="0.0.0.0:0")) as up:
        assert up.token
        assert "expertmesh worker --join" in up.said
        assert "--token em_" in up.said
        assert up.token not in up.said  # the printed one can join and nothing else
        with Client(up.address, token="wrong") as client, pytest.raises(Unauthenticated):
            client.nodes()
        monkeypatch.setenv("EXPERTMESH_HOME", str(folder / "home"))
        with Client(up.address) as client:
            assert list(client.complete(prompt_ids=PROMPT, max_tokens=COUNT, ignore_eos=True).token_ids) == expected
        up.stop()
    assert list((folder / "home" / "access").iterdir()) == []


def test_a_secure_mesh_answers_only_who_has_a_certificate(tiny_folder, folder, expected):
    from expertmesh import Tls, Unavailable

    with running_up(folder, up_arguments(tiny_folder, "--secure", "--store", "memory", listen="0.0.0.0:0")) as up:
        tls = Tls.in_folder(folder / "home" / "tls")
        with Client(up.address, token=up.token, tls=tls) as client:
            assert list(client.complete(prompt_ids=PROMPT, max_tokens=COUNT, ignore_eos=True).token_ids) == expected
        quick = ResumePolicy(first_attempts=1)
        with Client(up.address, token=up.token, resume=quick) as client, pytest.raises(Unavailable):
            client.nodes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "1", "--budget-share", "0.5"], "raise --workers or --budget-share"),
        (["--precision", "fp64"], "allowed are fp32, fp16, bf16, int8, int4"),
        (["--model", "/nonexistent"], "no model bundle in"),
        (["--local-layers", "0"], "--local-layers: local_layers '0': only numerics `fast` have some"),
        (
            ["--numerics", "fast", "--local-layers", "0-"],
            "--local-layers: local_layers '0-': expected `all`, `none`, or ranges",
        ),
        (["--numerics", "fast", "--local-layers", "0-9"], "local_layers '0-9': tiny has layers 0 to 2"),
        (["--numerics", "fast", "--local-layers", "0", "--workers", "0"], "raise --workers"),
        (["--local-layers", "none"], "--local-layers: local_layers 'none': only numerics `fast` have some"),
        (
            ["--numerics", "fast", "--local-layers", "none", "--workers", "0"],
            "--workers 0: --local-layers none leaves every expert to workers; add some, or leave it out",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tiny_folder, tmp_path, arguments, words):
    done = subprocess.run(
        [sys.executable, "-m", "expertmesh.cli.main", "up", *up_arguments(tiny_folder), *arguments],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_whose_memory_does_not_pack_are_refused_with_what_is_missing(tiny_folder, folder):
    (folder / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "expertmesh.cli.main", "up", "--cache", str(folder),
         *up_arguments(tiny_folder, "--workers", "5", "--budget-share", "0.2", "--store", "memory")],
        env={**os.environ, "TMPDIR": str(folder / "tmp")}, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "have no room for" in done.stderr
    assert "raise --budget-share" in done.stderr
