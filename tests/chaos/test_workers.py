"""Workers that die, hang, sleep, return and crash in a row, as processes of their own under real signals."""

from __future__ import annotations

import os
import signal
import time

import pytest

from chaos.parts import (
    NO_REPAIR,
    Asking,
    answer,
    disturbed_in_a_row,
    in_background,
    nodes,
    until_live,
    until_state,
)
from e2e.running import running_up, until
from expertmesh import Client, Unavailable
from expertmesh_common.bundle.blobs import Bundle

HOP_S = 2.0  # promised: a worker that hangs costs this, and then a replica has answered
LEASE_S = 3.0
AT_MOST = 3  # recovery limits are asserted at this multiple of what is promised

pytestmark = pytest.mark.timeout(120)


def half(tiny_folder) -> int:
    """Bytes that hold half of the experts."""
    return Bundle(tiny_folder).manifest.expert_bytes("fp32") // 2


def test_a_worker_killed_in_mid_answer_costs_no_token_and_no_call(mesh, expected_long):
    mesh.controller()
    first, _ = mesh.worker("w1"), mesh.worker("w2")
    with mesh.client(NO_REPAIR) as client:
        until_live(mesh, client, "w1", "w2")
        ids, pause_s = disturbed_in_a_row(client, first.kill)
        assert ids == expected_long * 3
        assert pause_s < 1.0 * AT_MOST
        print(f"killed: pause {pause_s:.2f} s")
        until_state(mesh, client, "w1", None, LEASE_S * AT_MOST)


@pytest.mark.slow
def test_a_stopped_worker_costs_one_hop_timeout_and_goes_on_when_it_wakes_up(mesh, expected_long, expected):
    mesh.controller()
    sleeper, _ = mesh.worker("w1"), mesh.worker("w2")
    with mesh.client(NO_REPAIR) as client:
        until_live(mesh, client, "w1", "w2")
        generation, loads = nodes(client)["w1"].generation, sleeper.orders_done("load")
        ids, pause_s = disturbed_in_a_row(client, sleeper.freeze)
        assert ids == expected_long * 3
        assert HOP_S / 2 < pause_s < HOP_S * AT_MOST
        print(f"stopped: pause {pause_s:.2f} s")
        until_state(mesh, client, "w1", None, LEASE_S * AT_MOST)
        sleeper.thaw()
        until_live(mesh, client, "w1", "w2", within_s=LEASE_S * AT_MOST)
        assert nodes(client)["w1"].generation == generation
        assert sleeper.orders_done("load") == loads, "what it holds is not loaded again"
        assert answer(client) == expected


@pytest.mark.slow
def test_a_ghost_that_wakes_up_after_its_successor_came_is_refused_and_ends(mesh, expected):
    mesh.controller()
    ghost, _ = mesh.worker("w1"), mesh.worker("w2")
    with mesh.client() as client:
        until_live(mesh, client, "w1", "w2")
        before = nodes(client)["w1"].generation
        ghost.freeze()
        until_state(mesh, client, "w1", None, LEASE_S * AT_MOST)
        mesh.worker("w1")
        until_live(mesh, client, "w1", "w2")
        successor = nodes(client)["w1"].generation
        assert successor != before
        ghost.thaw()
        assert ghost.process.wait(LEASE_S * AT_MOST) != 0
        assert f"generation {before} was replaced by a later start of it" in ghost.said
        assert nodes(client)["w1"].generation == successor
        assert answer(client) == expected


def test_a_worker_that_was_killed_comes_back_as_another_generation_and_serves(mesh, expected, tiny_folder):
    mesh.controller()
    first, _ = mesh.worker("w1", budget=half(tiny_folder)), mesh.worker("w2", budget=half(tiny_folder))
    with mesh.client() as client:
        until_live(mesh, client, "w1", "w2")
        before = nodes(client)["w1"].generation
        first.kill()
        until_state(mesh, client, "w1", None, LEASE_S * AT_MOST)
        mesh.worker("w1", budget=half(tiny_folder))
        until_live(mesh, client, "w1", "w2")
        assert nodes(client)["w1"].generation != before
        assert answer(client) == expected


@pytest.mark.slow
def test_a_worker_that_is_asked_to_end_gives_its_experts_to_others_first(mesh, expected, tiny_folder):
    """Only w1 holds its half, so somebody else must have loaded it before w1 may end."""
    mesh.controller()
    first, _ = mesh.worker("w1", budget=half(tiny_folder)), mesh.worker("w2", budget=half(tiny_folder))
    with mesh.client() as client:
        until_live(mesh, client, "w1", "w2")
        mesh.worker("w3", budget=half(tiny_folder))
        until_live(mesh, client, "w1", "w2", "w3")
        with Asking(mesh, expected) as asking:
            until(lambda: asking.count > 0, 30)
            assert first.end() == 0
            until_live(mesh, client, "w2", "w3")
            answered = asking.count
            until(lambda: asking.count > answered + 2 or bool(asking.wrong), 30)
        assert asking.wrong == []


def test_a_worker_that_dies_while_loading_is_replaced_by_its_next_start(mesh, expected):
    mesh.controller()
    mesh.worker("w2")
    with mesh.client() as client:
        until_live(mesh, client, "w2")
        dying = mesh.worker("w1")
        until(lambda: "joined the controller" in dying.said, 30, mesh.story)
        dying.freeze()  # in the middle of the orders that came with the welcome
        total = sum(1 for _ in client.experts())
        dying.kill()
        assert dying.orders_done("load") < total, "the kill came too late to mean anything"
        until_state(mesh, client, "w1", None, LEASE_S * AT_MOST)
        assert answer(client) == expected
        again = mesh.worker("w1")
        until_live(mesh, client, "w1", "w2")
        assert again.orders_done("load") == total
        assert answer(client) == expected


def test_without_any_worker_calls_fail_at_their_deadline_and_waiting_ones_go_on_when_one_is_back(mesh, expected):
    mesh.controller()
    workers = [mesh.worker("w1"), mesh.worker("w2")]
    with mesh.client(NO_REPAIR) as client:
        until_live(mesh, client, "w1", "w2")
        for worker in workers:
            worker.kill()
        until(lambda: not nodes(client), LEASE_S * AT_MOST)
        began = time.monotonic()
        with pytest.raises(Unavailable, match="before its deadline"):
            answer(client, deadline_s=2.0)
        assert 1.5 < time.monotonic() - began < 2.0 * AT_MOST
        waiting, results = in_background(lambda: answer(client, deadline_s=60))
        mesh.worker("w3")
        waiting.join(60)
        assert results == [expected]


def kill_and_wait(up, name: str) -> None:
    """Kill a process of the mesh; returns when its supervisor has started it again."""
    victim = up.pids[name]
    os.kill(victim, signal.SIGKILL)

    def restarted() -> bool:
        up.refresh()
        return up.pids[name] not in {None, victim}

    until(restarted, 20, lambda: up.said)


@pytest.mark.slow
def test_a_worker_that_dies_three_times_in_a_row_is_backed_off_from_and_reported(tiny_folder, folder, expected):
    arguments = ["--model", str(tiny_folder), "--listen", "127.0.0.1:0", "--budget-share", "1.0", "--store", "memory"]
    with running_up(folder, arguments) as up, Client(up.address, token=up.token) as client:
        for _ in range(3):
            kill_and_wait(up, "worker-2")
            assert answer(client) == expected
            until(lambda: "worker-2" in nodes(client), 30, lambda: up.said)
        waits = [line for line in up.said.splitlines() if "worker-2 was ended by SIGKILL; it starts again" in line]
        assert [line.rpartition(" in ")[2] for line in waits] == ["0.25 s", "0.5 s", "1 s"]
        assert nodes(client)["worker-2"].state == "unstable"
        assert nodes(client)["worker-2"].experts == 0
        log = (folder / "logs" / "controller.log").read_text()
        assert "worker_unstable worker_id=worker-2 crashes=3" in log
        until(lambda: nodes(client)["worker-2"].state == "live", 2.0 * AT_MOST, lambda: up.said)
