"""Which worker is asked when one is stale, fails, is slow, has left, or is this process."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from expertmesh_common.errors import DeadlinePassed, Unavailable
from rigs.expert_hosts import TinyHost
from rigs.expert_planes import (
    EVERYTHING,
    WEIGHTS,
    check,
    follow,
    some_rows,
    soon,
    table,
)


def test_only_the_stale_pairs_are_asked_again_elsewhere(start_here, make_plane):
    (first, host), (second, other) = start_here("w0"), start_here("w1")
    plane = make_plane()
    follow(plane, table(1, (first.route, EVERYTHING), (second.route, EVERYTHING)))
    check(plane, 0, some_rows(8))
    [(_, here, _)], [(_, there, _)] = host.requests, other.requests
    assert here
    assert there
    gone = here[0][1]
    host.resident -= {(0, gone)}
    host.requests.clear()
    other.requests.clear()
    check(plane, 0, some_rows(8))
    assert plane.counters.retried_pairs == len(here)  # not those of the other worker
    assert host.requests[0][1] == here
    assert other.requests[0][1] == there
    second_round = [pair for _, pairs, _ in (*host.requests[1:], *other.requests[1:]) for pair in pairs]
    assert sorted(e for _, e in second_round) == sorted(e for _, e in here)
    assert all(e != gone for _, pairs, _ in host.requests[1:] for _, e in pairs)
    assert plane.take_suspects() == ()


def test_failed_experts_are_run_by_a_replica(start_here, make_plane):
    (first, host), (second, _) = start_here("w0"), start_here("w1")
    plane = make_plane()
    follow(plane, table(1, (first.route, EVERYTHING), (second.route, EVERYTHING)))
    host.failing = True
    check(plane, 0, some_rows())
    assert host.requests


def test_an_expert_that_fails_everywhere_is_unavailable_with_the_workers_words(start_here, make_plane):
    worker, host = start_here()
    plane = make_plane()
    plane.update(table(1, (worker.route, EVERYTHING)))
    check(plane, 0, some_rows())
    host.failing = True
    with pytest.raises((Unavailable, DeadlinePassed), match="told to fail"):
        plane.run(0, some_rows(), soon(0.5))
    host.failing = False
    check(plane, 0, some_rows())  # it is asked again after a while


def test_rows_wait_for_a_newer_table_while_an_expert_has_no_replica(start_here, make_plane):
    (first, _), (second, _) = start_here("w0", EVERYTHING[:3]), start_here("w1")
    plane = make_plane()
    plane.update(table(1, (first.route, EVERYTHING[:3])))
    change = threading.Timer(
        0.4, plane.update, [table(2, (first.route, EVERYTHING[:3]), (second.route, EVERYTHING[3:]))]
    )
    change.start()
    begin = time.monotonic()
    check(plane, 1, some_rows())
    assert time.monotonic() - begin > 0.3
    change.join()


def test_without_a_newer_table_the_error_names_layer_and_expert(start_here, make_plane):
    worker, _ = start_here()
    plane = make_plane()
    plane.update(table(3, (worker.route, [at for at in EVERYTHING if at != (1, 2)])))
    check(plane, 0, some_rows())
    begin = time.monotonic()
    with pytest.raises(Unavailable, match=r"layer 1: no live worker holds expert 2 as of epoch 1\.3"):
        plane.run(1, some_rows(), soon(0.5))
    assert 0.4 < time.monotonic() - begin < 2


def test_a_slow_but_live_worker_is_a_passed_deadline_and_no_suspect(start_here, make_plane):
    worker, host = start_here()
    plane = make_plane()
    plane.update(table(1, (worker.route, EVERYTHING)))
    check(plane, 0, some_rows())
    host.pause.set()
    with pytest.raises(DeadlinePassed, match="layer 0"):
        plane.run(0, some_rows(), soon(0.3))
    host.pause.clear()
    host.resume.set()
    assert plane.take_suspects() == ()
    check(plane, 0, some_rows())


def test_an_older_table_is_ignored(start_here, make_plane):
    worker, host = start_here()
    plane = make_plane()
    plane.update(table(5, (worker.route, EVERYTHING)))
    plane.update(table(4))
    check(plane, 0, some_rows())
    assert host.requests[-1][2] == (1, 5)


def test_a_returning_ghost_is_not_asked(start_here, make_plane):
    worker, host = start_here()
    plane = make_plane()
    plane.update(table(1, (replace(worker.route, generation="g2"), EVERYTHING)))
    with pytest.raises(Unavailable):
        plane.run(0, some_rows(), soon(0.5))
    assert not host.requests


def test_local_experts_run_while_remote_workers_are_busy(start_here, make_plane):
    (worker, remote), order = start_here("w1"), []

    class Local(TinyHost):
        def execute(self, request):
            assert remote.entered.wait(5)  # posted before we started
            order.append("local")
            remote.resume.set()
            return super().execute(request)

    local = Local(WEIGHTS, set(WEIGHTS))
    plane = make_plane(local={"here": local})
    here = replace(worker.route, worker_id="here")
    remote.pause.set()
    held = EVERYTHING[0::2], EVERYTHING[1::2]
    follow(plane, table(1, (here, held[0]), (worker.route, held[1])))
    check(plane, 0, some_rows(9))
    assert order == ["local"]


def test_one_process_needs_no_worker_at_all(make_plane, start_here):
    local = TinyHost(WEIGHTS, set(WEIGHTS))
    worker, _ = start_here()
    plane = make_plane(local={"here": local})
    plane.update(table(1, (replace(worker.route, worker_id="here"), EVERYTHING)))
    for count in (0, 1, 6):
        check(plane, 1, some_rows(count))
    assert plane.traffic().bytes_sent == 0
