"""The shared table: what `prefer` chooses, and what survives the wire."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmesh_common.errors import InvalidInput
from expertmesh_controller.cluster.reports import MOST_ROWS, TOKEN_MS_BOUNDS, ExpertRows, GatewayReport
from expertmesh_controller.cluster.routes import (
    EndpointAddress,
    Epoch,
    InstanceRoute,
    Lack,
    RouteTable,
    WorkerRoute,
    prefer,
)
from expertmesh_controller.control.catalogue import CatalogueEntry, ExpertKey
from expertmesh_controller.control.world import lacks_of


def worker(worker_id: str, speed: float = 1.0) -> WorkerRoute:
    return WorkerRoute(worker_id, "g", (EndpointAddress("grpc", f"{worker_id}:1"),), "host", speed)


def everywhere(workers: list[WorkerRoute], layers: int = 4, experts: int = 8) -> RouteTable:
    instances = [
        InstanceRoute("m", i, j, w.worker_id, "fp32") for i in range(layers) for j in range(experts) for w in workers
    ]
    return RouteTable(Epoch(1, 1), tuple(workers), tuple(instances))


def test_equal_workers_share_every_layer_evenly() -> None:
    chosen = prefer(everywhere([worker("a"), worker("b")]), "m", {})
    for layer in range(4):
        assert Counter(w for at, w in chosen.items() if at[0] == layer) == {"a": 4, "b": 4}


def test_a_worker_of_half_the_speed_gets_half_of_what_the_other_gets() -> None:
    chosen = prefer(everywhere([worker("a", 2.0), worker("b", 1.0)], experts=9), "m", {})
    for layer in range(4):
        assert Counter(w for at, w in chosen.items() if at[0] == layer) == {"a": 6, "b": 3}


def test_frequent_experts_count_more_than_rare_ones() -> None:
    rows = {(0, 0): 0.9, (0, 1): 0.3, (0, 2): 0.3, (0, 3): 0.3}
    chosen = prefer(everywhere([worker("a"), worker("b")], layers=1, experts=4), "m", rows)
    hot = chosen[0, 0]
    assert [at for at, w in chosen.items() if w == hot] == [(0, 0)]


def test_experts_without_a_choice_are_counted_before_the_others_choose() -> None:
    only = [InstanceRoute("m", 0, n, "a", "fp32") for n in range(3)]
    free = [InstanceRoute("m", 0, n, w, "fp32") for n in range(3, 6) for w in ("a", "b")]
    chosen = prefer(RouteTable(Epoch(1, 1), (worker("a"), worker("b")), (*only, *free)), "m", {})
    assert {at: w for at, w in chosen.items() if at[1] >= 3} == {(0, 3): "b", (0, 4): "b", (0, 5): "b"}


def test_what_is_left_over_in_each_layer_does_not_always_go_to_the_same_worker() -> None:
    chosen = prefer(everywhere([worker("a"), worker("b")], layers=10, experts=3), "m", {})
    assert Counter(chosen.values()) == {"a": 15, "b": 15}


def test_workers_that_declare_no_speed_are_used_all_the_same() -> None:
    assert set(prefer(everywhere([worker("a", 0.0), worker("b", 0.0)]), "m", {}).values()) == {"a", "b"}


def test_another_model_has_no_say() -> None:
    assert prefer(everywhere([worker("a")]), "other", {}) == {}


@given(st.randoms(), st.lists(st.floats(0.1, 9), min_size=1, max_size=4))
def test_the_order_of_the_table_changes_nothing(order, speeds: list[float]) -> None:
    table = everywhere([worker(f"w{n}", s) for n, s in enumerate(speeds)])
    workers, instances = list(table.workers), list(table.instances)
    order.shuffle(workers)
    order.shuffle(instances)
    rows = {(0, 0): 0.5, (1, 3): 0.01}
    assert prefer(RouteTable(table.epoch, tuple(workers), tuple(instances)), "m", rows) == prefer(table, "m", rows)


def test_tables_and_reports_survive_the_wire() -> None:
    table = everywhere([worker("a"), worker("b", 2.5)])
    assert RouteTable.from_proto(table.to_proto()) == table
    lacking = replace(table, lacks=(Lack("m", 7), Lack("n", 2**40)))
    assert RouteTable.from_proto(lacking.to_proto()) == lacking
    assert [lacking.missing_bytes(model) for model in ("m", "n", "o")] == [7, 2**40, 0]
    histogram = tuple(range(len(TOKEN_MS_BOUNDS) + 1))
    report = GatewayReport("gw", 5, histogram, (ExpertRows("m", 1, 2, 3),), ("a",))
    assert GatewayReport.from_proto(report.to_proto()) == report


def test_a_report_of_more_rows_than_anyone_can_have_sent_is_refused_with_its_field() -> None:
    report = GatewayReport("gw", rows=(ExpertRows("m", 1, 2, MOST_ROWS + 1),))
    with pytest.raises(InvalidInput, match=r"rows: \d+ of expert 1/2 in one report of gateway 'gw'"):
        GatewayReport.from_proto(report.to_proto())


def test_what_a_plan_found_no_room_for_is_summed_by_model() -> None:
    keys = [ExpertKey(model, 0, n, "fp32") for model in "ba" for n in range(3)]
    catalogue = {key: CatalogueEntry(key, "d", 9, 10 + key.index, 1.0, 8, 8, "swiglu") for key in keys}
    gone = ExpertKey("c", 0, 0, "fp32")
    assert lacks_of([*catalogue, gone], catalogue) == (Lack("a", 33), Lack("b", 33))
    assert lacks_of([], catalogue) == ()


def test_instances_of_workers_that_a_message_does_not_list_are_dropped() -> None:
    message = everywhere([worker("a"), worker("b")], layers=1, experts=1).to_proto()
    del message.workers[1]
    assert [i.worker_id for i in RouteTable.from_proto(message).instances] == ["a"]


def test_epochs_are_ordered_by_term_before_number() -> None:
    assert Epoch(1, 9) < Epoch(2, 0) < Epoch(2, 0).next() == Epoch(2, 1)
