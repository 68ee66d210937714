"""Models come and go on a running mesh of real processes: nobody who uses another one notices."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Self

import psutil
import pytest

from e2e.running import RunningUp, running_up, until
from expertmesh import Client, Unavailable
from expertmesh_common.bundle.blobs import Bundle
from models.tiny_bundle import greedy_ids, make_tiny_bundle

PROMPT = [72, 101, 108, 108, 111]
COUNT = 128
LONGEST_STALL_S = 3.0  # three times what is promised


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("several")
    return {name: make_tiny_bundle(root / name, seed) for seed, name in enumerate(("one", "two"))}


@pytest.fixture(scope="session")
def expected(folders) -> dict[str, list[int]]:
    return {name: greedy_ids(Bundle(folder), PROMPT, COUNT) for name, folder in folders.items()}


def arguments(*models: str, store: str = "memory") -> list[str]:
    given = [part for model in models for part in ("--model", model)]
    return [*given, "--listen", "127.0.0.1:0", "--budget-share", "1.0", "--workers", "3", "--store", store]


def answer(client: Client, model: str, count: int = 24) -> list[int]:
    return list(client.complete(prompt_ids=PROMPT, max_tokens=count, ignore_eos=True, model=model).token_ids)


class Reader:
    """Streams answers of one model, one after the other, until told to stop."""

    def __init__(self, up: RunningUp, model: str, expected: list[int]) -> None:
        self.answers, self.wrong, self.longest_s = 0, 0, 0.0
        self.error: Exception | None = None
        self._up, self._model, self._expected = up, model, expected
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        try:
            with Client(self._up.address) as client:
                while not self._stop.is_set():
                    self._one(client)
        except Exception as error:  # noqa: BLE001 - handed to the test
            self.error = error

    def _one(self, client: Client) -> None:
        ids, last = [], time.monotonic()
        for token in client.generate(prompt_ids=PROMPT, max_tokens=COUNT, ignore_eos=True, model=self._model):
            now = time.monotonic()
            self.longest_s, last = max(self.longest_s, now - last), now
            ids.append(token.id)
        self.answers += 1
        self.wrong += ids != self._expected


def test_a_stream_of_one_model_does_not_notice_another_come_and_go_three_times(folders, folder, expected):
    with running_up(folder, arguments(f"one={folders['one']}")) as up, Client(up.address) as client:
        with Reader(up, "one", expected["one"]) as reader:
            until(lambda: reader.answers > 0 or reader.error is not None, 30)
            for _ in range(3):
                client.serve_model(folders["two"], name="two")
                client.wait_ready(model="two", deadline_s=30)
                assert answer(client, "two") == expected["two"][:24]
                assert client.unserve_model("two") == 0
                answered = reader.answers
                until(lambda: reader.answers > answered or reader.error is not None, 30)  # noqa: B023 - at once
        assert reader.error is None
        assert reader.wrong == 0
        assert reader.longest_s < LONGEST_STALL_S
        assert reader.answers > 3
        assert [m.name for m in client.served_models()] == ["one"]


def test_up_serves_several_models_and_says_how_to_ask_one_of_them(folders, folder, expected):
    with running_up(folder, arguments(*(f"{n}={p}" for n, p in folders.items()))) as up, Client(up.address) as client:
        assert "one, two (fp32) are served on" in up.said
        assert "--model one" in up.said
        for name, ids in expected.items():
            assert answer(client, name) == ids[:24]


def test_a_killed_controller_comes_back_with_the_models_that_were_served_at_run_time(folders, folder, expected):
    up_arguments = arguments(f"one={folders['one']}", store="embedded")
    with running_up(folder, up_arguments) as up, Client(up.address, deadline_s=60) as client:
        client.serve_model(folders["two"], name="two", budget_share=0.5)
        client.wait_ready(deadline_s=30)
        client.unserve_model("one")
        client.wait_ready(deadline_s=30)
        before = {node.worker_id: node.generation for node in client.nodes()}
        killed = up.pids["controller"]
        os.kill(killed, signal.SIGKILL)
        until(lambda: (up.refresh() or up.pids["controller"]) not in {killed, None}, 30)
        until(lambda: _is_back(client), 60, lambda: up.said)
        assert [(m.name, m.budget_share) for m in client.served_models()] == [("two", 0.5)]
        assert answer(client, "two") == expected["two"][:24]
        assert {node.worker_id: node.generation for node in client.nodes()} == before
        logs = "".join((folder / "logs" / f"worker-{n}.log").read_text() for n in (1, 2, 3))
        assert "Traceback" not in logs


def _is_back(client: Client) -> bool:
    try:
        models = client.served_models()
    except Unavailable:
        return False
    return bool(models) and all(m.state == "ready" for m in models)


@pytest.mark.slow
def test_a_real_trunks_memory_comes_back_when_its_model_goes_and_nobody_waits_for_it(folders, folder, expected):
    demo = Path(__file__).resolve().parents[2] / "build" / "demo-bundle"
    if not (demo / "manifest.json").is_file():
        pytest.fail("build/demo-bundle is missing: `make run` makes it")
    with running_up(folder, arguments(f"one={folders['one']}")) as up, Client(up.address, deadline_s=120) as client:
        process = psutil.Process(up.pids["controller"])
        seen = []
        with Reader(up, "one", expected["one"]) as reader:
            for _ in range(4):
                status = client.serve_model(demo, name="demo", slots=2)
                full = process.memory_info().rss
                client.unserve_model(status.name)
                seen.append((full, process.memory_info().rss))
        assert (reader.error, reader.wrong) == (None, 0)
        assert reader.answers > 0
        assert reader.longest_s < LONGEST_STALL_S
        trunk_bytes = seen[0][0] - seen[0][1]
        assert trunk_bytes > 100 << 20
        # The first time pays for what a process pays once; after that nothing may grow.
        assert seen[-1][1] < 1.05 * seen[0][1] + (8 << 20), seen


@pytest.mark.slow
def test_twenty_models_come_and_go_and_the_controller_is_as_small_as_before(folders, folder):
    with running_up(folder, arguments(f"one={folders['one']}")) as up, Client(up.address, deadline_s=120) as client:
        process, sizes, threads = psutil.Process(up.pids["controller"]), [], []
        for _ in range(23):
            client.serve_model(folders["two"], name="two")
            client.wait_ready(deadline_s=30)
            answer(client, "two")
            client.unserve_model("two")
            sizes.append(process.memory_info().rss)
            threads.append(process.num_threads())
        assert sizes[-1] < 1.05 * sizes[2] + (4 << 20), sizes
        assert max(threads[2:]) <= threads[2] + 4, threads
