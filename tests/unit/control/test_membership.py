"""The membership state machine under a clock that is moved by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from expertmesh_api.v1 import common_pb2, membership_pb2
from expertmesh_common.errors import InvalidInput, Precondition, Refused
from expertmesh_controller.control.catalogue import ExpertKey
from expertmesh_controller.control.membership.applying import admit, apply
from expertmesh_controller.control.membership.hello import Hello, Resident, read_hello
from expertmesh_controller.control.membership.state import (
    Answered,
    Broke,
    Cluster,
    Heard,
    Joined,
    LeaveAsked,
    Limits,
    Ordered,
    SentOrder,
    Suspected,
    Ticked,
)

KEY = ExpertKey("m", 0, 1, "fp32")
LIMITS = Limits(lease_s=3.0, order_timeout_s=30.0, retry_first_s=0.5, retry_most_s=4.0)


def message(**changes: object) -> membership_pb2.Hello:
    fields: dict[str, object] = {
        "worker_id": "a", "generation": "g1", "version": "0.3.9", "host_id": "h",
        "capabilities": membership_pb2.Capabilities(budget_bytes=100, speed_rows_per_s=5),
        "endpoints": [common_pb2.Endpoint(transport="grpc", address="a:1")],
    }  # fmt: skip
    return membership_pb2.Hello(**{**fields, **changes})


def hello(generation: str = "g1", worker_id: str = "a") -> Hello:
    return read_hello(message(generation=generation, worker_id=worker_id), "0.3.0")


def joined(at: float = 0.0) -> Cluster:
    return apply(Cluster(LIMITS), Joined(hello(), 1, at))


def ordered(cluster: Cluster, at: float = 0.0, kind: str = "load", order_id: int = 1) -> Cluster:
    return apply(cluster, Ordered(order_id, SentOrder("a", kind, KEY, Resident("d", 40), at)))


@pytest.mark.parametrize("version", ["0.2.0", "0.3.7", "0.4.1", "0.4.0rc1"])
def test_versions_one_minor_apart_may_join(version: str) -> None:
    assert read_hello(message(version=version), "0.3.0").version == version


@pytest.mark.parametrize(("version", "who"), [("0.1.9", "worker"), ("0.5.0", "controller"), ("1.3.0", "controller")])
def test_versions_further_apart_are_refused_and_told_what_to_upgrade(version: str, who: str) -> None:
    with pytest.raises(Precondition, match=f"version {version}, this controller 0.3.0.*upgrade the {who}"):
        read_hello(message(version=version), "0.3.0")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"worker_id": "a/b"}, "worker_id"),
        ({"generation": ""}, "generation"),
        ({"version": "new"}, "version"),
        ({"endpoints": []}, "endpoint"),
        ({"capabilities": membership_pb2.Capabilities()}, "budget_bytes"),
        ({"capabilities": membership_pb2.Capabilities(budget_bytes=1, speed_rows_per_s=math.nan)}, "speed_rows_per_s"),
    ],
)
def test_a_hello_with_a_wrong_field_names_it(changes: dict[str, object], word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        read_hello(message(**changes), "0.3.0")


def test_a_worker_is_live_as_long_as_it_beats_within_the_lease() -> None:
    cluster = joined()
    for second in range(1, 10):
        cluster = apply(apply(cluster, Heard(1, second * 2.9, rows=second)), Ticked(second * 2.9 + 2.9))
    assert cluster.members["a"].rows == 9
    assert apply(cluster, Ticked(9 * 2.9 + 3.1)).members == {}


def test_a_broken_stream_loses_the_worker_at_once_with_its_orders() -> None:
    cluster = apply(ordered(joined()), Broke(1))
    assert (cluster.members, cluster.orders) == ({}, {})


def test_a_newer_start_replaces_the_older_one_which_is_then_a_ghost() -> None:
    cluster = apply(joined(), Joined(hello("g2"), 2, 1.0))
    assert cluster.members["a"].hello.generation == "g2"
    assert apply(cluster, Heard(1, 2.0, rows=5)) is cluster, "the old stream still talks"
    assert apply(cluster, Broke(1)) is cluster, "the old stream breaks late"
    with pytest.raises(Refused, match="g1 was replaced by a later start"):
        admit(cluster, hello("g1"))


def test_a_ghost_is_refused_even_after_its_successor_is_gone() -> None:
    cluster = apply(apply(joined(), Joined(hello("g2"), 2, 1.0)), Broke(2))
    with pytest.raises(Refused):
        admit(cluster, hello("g1"))
    admit(cluster, hello("g2"))


def test_a_ghost_that_slept_through_its_lease_is_refused_after_its_successor_came() -> None:
    cluster = apply(apply(joined(), Ticked(3.1)), Joined(hello("g2"), 2, 4.0))
    with pytest.raises(Refused, match="was replaced by a later start"):
        admit(cluster, hello("g1"))


def crashed(times: int, step_s: float = 1.0) -> Cluster:
    """The worker after so many restarts that it did not ask for, one every `step_s`."""
    cluster = joined()
    for n in range(1, times + 1):
        cluster = apply(apply(cluster, Broke(n)), Joined(hello(f"g{n + 1}"), n + 1, n * step_s))
    return cluster


def test_a_worker_that_crashes_again_and_again_is_left_out_twice_as_long_each_time() -> None:
    waits = [crashed(times).members["a"].aside_until - times for times in range(3, 9)]
    assert waits == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    steady = Joined(hello(worker_id="b"), 99, 3.0)
    assert apply(crashed(2), steady).aside(3.0) == frozenset()
    assert apply(crashed(3), steady).aside(4.9) == {"a"}
    assert apply(crashed(3), steady).aside(5.0) == frozenset()


def test_an_unstable_worker_is_better_than_none() -> None:
    assert crashed(3).unstable(4.9) == {"a"}
    assert crashed(3).aside(4.9) == frozenset()


def test_crashes_of_long_ago_orderly_starts_and_broken_streams_make_no_worker_unstable() -> None:
    assert crashed(5, step_s=40.0).unstable(200.0) == frozenset()
    cluster = joined()
    for n in range(1, 6):
        cluster = apply(apply(apply(cluster, LeaveAsked(n, 1.0)), Broke(n)), Joined(hello(f"g{n + 1}"), n + 1, 1.0))
    assert cluster.unstable(1.0) == frozenset()
    cluster = joined()
    for n in range(1, 6):
        cluster = apply(apply(cluster, Broke(n)), Joined(hello(), n + 1, 1.0))
    assert cluster.unstable(1.0) == frozenset()


def suspected(cluster: Cluster, at: float, gateway_id: str = "g") -> Cluster:
    return apply(cluster, Suspected(gateway_id, frozenset({"a", "stranger"}), at))


def test_one_failed_call_makes_a_suspect_and_only_a_link_that_stays_down_makes_a_worker_unreachable() -> None:
    cluster = suspected(joined(), 1.0)
    assert (cluster.suspects, cluster.unreachable) == ({"a"}, frozenset())
    assert suspected(cluster, 2.0).unreachable == {"a"}
    assert suspected(cluster, 2.0, "another gateway, once").unreachable == frozenset()


def test_a_worker_is_trusted_again_when_it_was_not_named_for_a_while() -> None:
    cluster = replace(suspected(suspected(joined(), 1.0), 2.0))
    cluster = apply(cluster, Heard(1, 4.9, 0))
    assert apply(cluster, Ticked(5.0)) is cluster
    cluster = apply(cluster, Ticked(5.1))
    assert (cluster.suspects, cluster.unreachable) == (frozenset(), frozenset())


def test_a_new_start_of_a_suspect_begins_without_suspicion() -> None:
    cluster = suspected(suspected(joined(), 1.0), 2.0)
    assert apply(cluster, Joined(hello("g2"), 2, 2.5)).suspects == frozenset()
    assert apply(cluster, Broke(1)).suspects == frozenset()


def test_the_same_start_may_come_back_on_a_new_connection() -> None:
    cluster = apply(joined(), Joined(hello(), 2, 1.0))
    admit(cluster, hello())
    assert cluster.members["a"].connection == 2
    assert cluster.retired == {}


def test_a_load_that_went_well_is_resident_with_the_bytes_it_was_ordered_with() -> None:
    cluster = apply(ordered(joined()), Answered(1, 1, ok=True, error="", at=1.0))
    assert cluster.members["a"].resident == {KEY: Resident("d", 40)}
    assert cluster.orders == {}
    cluster = apply(ordered(cluster, kind="unload", order_id=2), Answered(1, 2, ok=True, error="", at=2.0))
    assert cluster.members["a"].resident == {}


def test_failed_loads_wait_twice_as_long_each_time_up_to_the_most() -> None:
    cluster, waits = joined(), []
    for n in range(6):
        cluster = apply(ordered(cluster, order_id=n), Answered(1, n, ok=False, error="disk full", at=10.0))
        waits.append(cluster.failures["a", KEY].not_before - 10.0)
    assert waits == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert cluster.failures["a", KEY].error == "disk full"


def test_an_order_without_an_answer_fails_but_its_late_answer_is_believed() -> None:
    cluster = apply(apply(ordered(joined()), Heard(1, 30.0, 0)), Ticked(30.5))
    assert cluster.orders[1].overdue
    assert "no answer within 30 s" in cluster.failures["a", KEY].error
    cluster = apply(cluster, Answered(1, 1, ok=True, error="", at=31.0))
    assert KEY in cluster.members["a"].resident
    assert cluster.failures == {}


def test_an_answer_from_another_worker_changes_no_holdings() -> None:
    cluster = apply(ordered(joined()), Joined(hello(worker_id="b"), 2, 0.0))
    cluster = apply(cluster, Answered(2, 1, ok=True, error="", at=1.0))
    assert cluster.orders[1].worker_id == "a"
    assert cluster.members["b"].resident == {}


def test_a_leaving_worker_stays_a_member_until_it_is_let_go() -> None:
    cluster = apply(joined(), LeaveAsked(1, 2.0))
    assert cluster.members["a"].leaving_since == 2.0


def test_time_alone_changes_nothing_within_the_lease() -> None:
    cluster = ordered(joined())
    assert apply(cluster, Ticked(2.9)) is cluster
    assert replace(cluster) == cluster
