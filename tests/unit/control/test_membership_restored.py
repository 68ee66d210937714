"""What a controller knows of workers that it never saw: from the record of the one before it."""

from __future__ import annotations

import json

import pytest

from expertmesh_common.errors import Refused
from expertmesh_controller.control.catalogue import ExpertKey
from expertmesh_controller.control.membership.applying import CRASHES_ALLOWED, admit, apply
from expertmesh_controller.control.membership.hello import Capabilities, Hello, Resident
from expertmesh_controller.control.membership.restoring import LIVES_KEPT, last_generations
from expertmesh_controller.control.membership.state import (
    Broke,
    Cluster,
    Joined,
    Limits,
    Ordered,
    Restored,
    SentOrder,
)
from expertmesh_controller.control.record import ControlRecord

LIMITS = Limits(lease_s=3.0, order_timeout_s=30.0, retry_first_s=0.5, retry_most_s=4.0)


def hello(generation: str, worker_id: str = "a") -> Hello:
    return Hello(worker_id, generation, "0.1.0", "h", Capabilities(1, 1, 100, 1.0, 1.0, 1.0, ()), (), {})


def joined(cluster: Cluster, generation: str, connection: int, worker_id: str = "a") -> Cluster:
    admit(cluster, hello(generation, worker_id))
    return apply(cluster, Joined(hello(generation, worker_id), connection, 1.0))


def restarted(cluster: Cluster, after: Cluster | None = None) -> Cluster:
    """A new controller's cluster, with the old one's record; `after`: what it saw before it read that."""
    record = ControlRecord(retired=cluster.retired, generations=last_generations(cluster))
    read = ControlRecord.decode(record.encode())
    return apply(after or Cluster(LIMITS), Restored(read.retired, read.generations))


def test_a_ghost_whose_successor_came_while_no_controller_ran_is_refused() -> None:
    cluster = joined(restarted(joined(Cluster(LIMITS), "g1", 1)), "g2", 1)
    with pytest.raises(Refused, match="g1 was replaced by a later start"):
        admit(cluster, hello("g1"))


def test_also_when_the_successor_was_faster_than_the_store() -> None:
    cluster = restarted(joined(Cluster(LIMITS), "g1", 1), after=joined(Cluster(LIMITS), "g2", 1))
    assert cluster.members["a"].hello.generation == "g2"
    with pytest.raises(Refused):
        admit(cluster, hello("g1"))


def test_a_ghost_that_was_faster_than_the_store_is_no_member_any_more() -> None:
    before = joined(joined(Cluster(LIMITS), "g1", 1), "g2", 2)
    cluster = restarted(before, after=joined(Cluster(LIMITS), "g1", 1))
    assert cluster.members == {}


def test_a_ghost_that_was_faster_than_the_store_has_retired_nobody() -> None:
    before = joined(joined(Cluster(LIMITS), "g1", 1), "g2", 2)
    for newest in ("g2", "g3"):
        cluster = restarted(before, after=joined(joined(Cluster(LIMITS), newest, 1), "g1", 2))
        assert joined(cluster, newest, 3).members["a"].hello.generation == newest
        with pytest.raises(Refused):
            admit(cluster, hello("g1"))


def test_a_ghost_takes_its_orders_along() -> None:
    key = ExpertKey("m", 0, 0, "fp32")
    late = joined(Cluster(LIMITS), "g1", 1)
    late = apply(late, Ordered(7, SentOrder("a", "load", key, Resident("d", 1), 1.0)))
    assert late.orders
    assert restarted(joined(joined(Cluster(LIMITS), "g1", 1), "g2", 2), after=late).orders == {}


def test_the_same_start_and_a_first_successor_come_back_without_suspicion() -> None:
    cluster = restarted(joined(Cluster(LIMITS), "g1", 1))
    assert joined(cluster, "g1", 1).retired == {}
    for start in range(CRASHES_ALLOWED + 1):
        cluster = apply(joined(cluster, f"h{start}", start), Broke(start))
    assert joined(cluster, "h9", 9).members["a"].aside_until > 0, "its crashes count from the first that was seen"
    assert len(cluster.lives["a"].crashes) == CRASHES_ALLOWED


def test_what_was_superseded_before_two_restarts_stays_refused() -> None:
    cluster = restarted(joined(joined(Cluster(LIMITS), "g1", 1), "g2", 2))
    cluster = restarted(joined(cluster, "g3", 1))
    for ghost in ("g1", "g2"):
        with pytest.raises(Refused):
            admit(cluster, hello(ghost))


def test_of_ever_new_names_the_last_ones_are_written_down() -> None:
    cluster = joined(Cluster(LIMITS), "g", 0, "first")
    for number in range(3):
        cluster = joined(cluster, "g", number + 1, f"w{number}")
    cluster = joined(cluster, "g", 9, "first")
    assert list(last_generations(cluster)) == ["w0", "w1", "w2", "first"]
    assert LIVES_KEPT >= 1000


def test_a_record_of_before_has_no_generations() -> None:
    document = json.loads(ControlRecord(retired={"a": ("g1",)}).encode())
    del document["generations"]
    assert ControlRecord.decode(json.dumps(document).encode()).generations == {}
