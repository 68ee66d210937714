"""The control loop and its store go away and come back, as real processes; nobody who asks for tokens notices."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.parts import Asking, answer, nodes, stream, until_live, until_state
from e2e.running import disturbed, until
from expertmesh_controller.local.reaching import free_port

AT_MOST = 3
RESTART_S = 5.0  # promised: a controller that starts again answers after this
NOTICED_S = 3.5  # promised: a worker whose controller hangs looks for one after a lease, counted in halves of seconds
BACK_S = 1.5  # promised: a controller that goes on after a pause has its workers again

pytestmark = pytest.mark.timeout(150)


@pytest.mark.slow
def test_a_controller_that_was_killed_takes_its_state_from_the_store_and_loads_no_expert_twice(mesh, expected_long):
    controller = mesh.controller(store="embedded")
    workers = [mesh.worker("w1"), mesh.worker("w2")]
    with mesh.client() as client:
        until_live(mesh, client, "w1", "w2")
        before, loads = nodes(client), [worker.orders_done("load") for worker in workers]
        held = {e.index: e.worker_ids for e in client.experts()}

        def restart() -> None:
            controller.kill()
            mesh.controller(store="embedded")

        ids, _ = disturbed(stream(client), 20, restart)
        assert ids == expected_long
        until_live(mesh, client, "w1", "w2", within_s=RESTART_S * AT_MOST)
        assert {n: node.generation for n, node in nodes(client).items()} == {
            n: node.generation for n, node in before.items()
        }
        assert {e.index: e.worker_ids for e in client.experts()} == held
        assert [worker.orders_done("load") for worker in workers] == loads
        assert [worker.orders_done("unload") for worker in workers] == [0, 0]
        assert all("joined the controller" in worker.said.partition("joined the controller")[2] for worker in workers)


@pytest.mark.slow
def test_a_controller_that_is_asked_to_end_and_started_again_loads_no_expert_twice(mesh, expected):
    controller = mesh.controller(store="embedded")
    workers = [mesh.worker("w1"), mesh.worker("w2")]
    with mesh.client() as client:
        until_live(mesh, client, "w1", "w2")
        loads = [worker.orders_done("load") for worker in workers]
        assert controller.end() == 0
        mesh.controller(store="embedded")
        until_live(mesh, client, "w1", "w2", within_s=RESTART_S * AT_MOST)
        assert [worker.orders_done("load") for worker in workers] == loads
        assert answer(client) == expected


@pytest.mark.slow
def test_workers_leave_a_controller_that_hangs_and_are_back_when_it_goes_on_with_every_expert_loaded_once(
    mesh, expected
):
    controller = mesh.controller()
    workers = [mesh.worker("w1"), mesh.worker("w2")]
    with mesh.client() as client:
        until_live(mesh, client, "w1", "w2")
        before, loads = nodes(client), [worker.orders_done("load") for worker in workers]
        controller.freeze()
        stopped = time.monotonic()
        noticed_s = until(
            lambda: all("said nothing for 3 s" in worker.said for worker in workers), NOTICED_S * AT_MOST, mesh.story
        )
        assert all(worker.process.poll() is None for worker in workers)
        until(lambda: time.monotonic() - stopped >= 6.0, 10)
        controller.thaw()
        back_s = until_live(mesh, client, "w1", "w2", within_s=BACK_S * AT_MOST)
        print(f"noticed after {noticed_s:.2f} s, back after {back_s:.2f} s")
        assert {n: node.generation for n, node in nodes(client).items()} == {
            n: node.generation for n, node in before.items()
        }
        assert answer(client) == expected
        assert [worker.orders_done("load") for worker in workers] == loads
        assert [worker.orders_done("unload") for worker in workers] == [0, 0]


@contextlib.contextmanager
def redis_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A real server that keeps its data in `folder`."""
    program = shutil.which("redis-server")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("redis-server must be installed in CI")
        pytest.skip("redis-server is not installed: deploy/install-test-servers.sh does it")
    folder.mkdir(exist_ok=True)
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            until(lambda: _answers(port), 20)
            yield server
        finally:
            server.kill()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(5) == b"+PONG"
    return False


@pytest.mark.slow
@pytest.mark.parametrize(("hung", "outage_s"), [(False, 30.0), (True, 5.0)], ids=["gone for 30 s", "hung for 5 s"])
def test_without_its_store_the_mesh_goes_on_serving_and_decides_again_when_it_is_back(
    mesh, expected, folder, outage_s, hung
):
    port = free_port("127.0.0.1")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(redis_server(folder / "redis", port))
        controller = mesh.controller(store=f"redis://127.0.0.1:{port}/0")
        first, _ = mesh.worker("w1"), mesh.worker("w2")
        client = stack.enter_context(mesh.client())
        until_live(mesh, client, "w1", "w2")
        with Asking(mesh, expected) as asking:
            server.send_signal(signal.SIGSTOP if hung else signal.SIGKILL)
            until(lambda: "deciding stops, serving goes on" in controller.said, 10 * AT_MOST, mesh.story)
            first.kill()  # its replicas serve on, though nobody can decide anything
            until_state(mesh, client, "w1", None, 9.0)
            mesh.worker("w3")
            until(lambda: "w3" in nodes(client), 30)
            served, end = asking.count, time.monotonic() + outage_s
            until(lambda: time.monotonic() >= end, outage_s + 5)
            assert asking.count > served, "serving went on"
            assert nodes(client)["w3"].experts == 0, "nothing is decided without the store"
            if hung:
                server.send_signal(signal.SIGCONT)
            else:
                stack.enter_context(redis_server(folder / "redis", port))
            until_state(mesh, client, "w3", "live", 5.0 * AT_MOST)
            until_live(mesh, client, "w2", "w3")
        assert asking.wrong == []
        assert asking.longest_s < 2.0 * AT_MOST
