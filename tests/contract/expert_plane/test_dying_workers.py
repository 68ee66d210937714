"""What a gateway sees when workers die or hang: real processes, real signals."""

from __future__ import annotations

import threading
import time

import pytest

from expertmesh_controller.gateway.dispatch.links.base import LinkDown, LinkTimeout
from rigs.expert_planes import (
    EVERYTHING,
    LAYERS,
    TRANSPORTS,
    ask,
    check,
    follow,
    some_rows,
    soon,
    table,
)

# Longer than the test: the kill comes, or the timeout would, while the gateway polls.
SPINNING = pytest.mark.parametrize(("transport", "spin_us"), [*((name, 0) for name in TRANSPORTS), ("unix", 1_000_000)])


@SPINNING
def test_a_worker_killed_with_a_request_under_way_is_an_error_at_once(start, open_one, transport, spin_us):
    worker = start(spin_us=spin_us)
    link = open_one(worker.route, transport, spin_us)
    worker.freeze()  # so that the request cannot be answered before the kill
    link.post(ask(some_rows(1)), soon())
    killer = threading.Timer(0.2, worker.kill)
    killer.start()
    begin = time.monotonic()
    with pytest.raises(LinkDown) as caught:
        link.take(soon())
    killer.join()
    assert not isinstance(caught.value, LinkTimeout)
    assert time.monotonic() - begin < 5


@SPINNING
def test_a_stopped_process_costs_one_hop_timeout_and_its_rows_go_to_a_replica(start, make_plane, transport, spin_us):
    first, second = start("w0"), start("w1")
    plane = make_plane(transport, hop_s=0.5, spin_us=spin_us)
    follow(plane, table(1, (first.route, EVERYTHING), (second.route, EVERYTHING)))
    for layer in range(LAYERS):
        check(plane, layer, some_rows())
    first.freeze()
    begin = time.monotonic()
    check(plane, 0, some_rows(9))
    assert 0.4 < time.monotonic() - begin < 5
    assert plane.take_suspects() == ("w0",)
    assert plane.take_suspects() == ()
    before = plane.counters.retried_pairs
    check(plane, 1, some_rows(9))  # it is not asked again
    assert plane.counters.retried_pairs == before


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_killed_worker_changes_no_result_while_a_replica_lives(start, make_plane, transport):
    first, second = start("w0"), start("w1")
    plane = make_plane(transport)
    follow(plane, table(1, (first.route, EVERYTHING), (second.route, EVERYTHING)))
    check(plane, 0, some_rows())
    first.kill()
    for turn in range(6):
        check(plane, turn % LAYERS, some_rows(7, turn))
    assert plane.take_suspects() == ("w0",)


def test_a_thawed_worker_is_used_again_once_its_link_is_up(start, make_plane):
    only = start("w0")
    plane = make_plane(hop_s=0.3)
    plane.update(table(1, (only.route, EVERYTHING)))
    check(plane, 0, some_rows())
    only.freeze()
    thaw = threading.Timer(0.8, only.thaw)
    thaw.start()
    check(plane, 0, some_rows())
    thaw.join()
