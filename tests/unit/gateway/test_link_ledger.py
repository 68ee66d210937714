"""What links moved stays counted when they are closed, by worker and transport."""

from __future__ import annotations

from expertmesh_controller.gateway.dispatch.links.ledger import Ledger, LinkTotals
from expertmesh_controller.gateway.dispatch.links.local import LocalLink
from expertmesh_controller.gateway.observing.spans import moved
from rigs.expert_hosts import IdentityHost


def link(worker_id: str, frames: int, sent: int, received: int) -> LocalLink:
    made = LocalLink(worker_id, IdentityHost())
    made.frames, made.bytes_sent, made.bytes_received = frames, sent, received
    return made


def test_closed_links_and_those_that_stand_add_up_by_worker():
    ledger = Ledger()
    ledger.closed(link("a", 2, 20, 10), failed=True)
    ledger.closed(link("a", 1, 10, 5), failed=False)
    found = ledger.totals([link("a", 3, 30, 15), link("b", 1, 1, 1)])
    assert found == (
        LinkTotals("a", "local", up=1, frames=6, bytes_sent=60, bytes_received=30, failures=1),
        LinkTotals("b", "local", up=1, frames=1, bytes_sent=1, bytes_received=1),
    )
    assert [t.up for t in ledger.totals([])] == [0]


def test_between_two_looks_only_workers_that_were_asked_are_named():
    ledger = Ledger()
    before = ledger.totals([link("a", 1, 10, 5), link("b", 1, 10, 5)])
    after = ledger.totals([link("a", 1, 10, 5), link("b", 3, 50, 25), link("c", 1, 7, 3)])
    assert moved(before, after) == {
        "expertmesh.workers": ["b", "c"],
        "expertmesh.frames": 3,
        "expertmesh.bytes_sent": 47,
        "expertmesh.bytes_received": 23,
    }
