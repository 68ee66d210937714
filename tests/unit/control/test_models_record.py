"""What a restarted controller serves: what it served last, unless the operator says something new."""

from __future__ import annotations

from pathlib import Path

import pytest

from expertmesh_common.errors import CorruptData, InvalidInput
from expertmesh_controller.cluster.models import ModelSpec, SlaTarget, checked
from expertmesh_controller.control.models.record import ModelsRecord, models_at_start


def spec(name: str, **changes) -> ModelSpec:
    return ModelSpec(name, Path("/bundles") / name, "fp32", 4, **changes)


GIVEN = (ModelSpec("", Path("/bundles/a"), "fp32", 4),)
A, B = spec("a"), spec("b", budget_share=0.25, sla=SlaTarget(ttft_p95_ms=200, max_instances=2))


def test_a_record_survives_its_way_through_the_store():
    record = ModelsRecord(GIVEN, (A, B))
    assert ModelsRecord.decode(record.encode()) == record
    assert ModelsRecord.decode(None) is None


def test_a_version_that_knew_neither_numerics_nor_local_layers_reads_what_uses_neither():
    assert not {"numerics", "local_layers"} & A.to_document().keys()
    fast = spec("f", numerics="fast", local_layers="0-7")
    assert ModelSpec.from_document(fast.to_document()) == fast
    assert fast.to_document().keys() - A.to_document().keys() == {"numerics", "local_layers"}


@pytest.mark.parametrize("data", [b"", b"[]", b'{"started_with": [], "served": [{"name": "a"}]}', b"\xff"])
def test_bytes_that_are_no_record_are_refused(data):
    with pytest.raises(CorruptData, match="models"):
        ModelsRecord.decode(data)


def test_without_a_record_the_settings_hold():
    assert models_at_start(GIVEN, None) == GIVEN


def test_after_a_restart_what_was_served_last_is_served_again():
    assert models_at_start(GIVEN, ModelsRecord(GIVEN, (A, B))) == (A, B)
    assert models_at_start(GIVEN, ModelsRecord(GIVEN, (B,))) == (B,)  # the first was taken away


def test_new_settings_hold_with_what_was_served_at_run_time():
    other = (ModelSpec("", Path("/bundles/c"), "fp32", 4),)
    assert models_at_start(other, ModelsRecord(GIVEN, (A, B))) == (*other, B)


def test_new_settings_win_over_what_was_served_under_their_name():
    other = (ModelSpec("b", Path("/elsewhere"), "int4", 4),)
    assert models_at_start(other, ModelsRecord(GIVEN, (A, B))) == other


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "name"), ({"name": "a/b"}, "name"), ({"name": "x" * 129}, "name"),
        ({"precision": "fp64"}, "precision"), ({"slots": 0}, "slots"), ({"budget_share": 0.0}, "budget_share"),
        ({"budget_share": float("nan")}, "budget_share"), ({"sla": SlaTarget(ttft_p95_ms=-1)}, "sla.ttft_p95_ms"),
        ({"sla": SlaTarget(window_s=float("inf"))}, "sla.window_s"),
        ({"sla": SlaTarget(min_instances=3, max_instances=2)}, "sla.max_instances"),
    ],
)  # fmt: skip
def test_a_field_out_of_range_is_named(changes, field):
    values = {"name": "a", "path": Path("/b"), "precision": "fp32", "slots": 4, **changes}
    with pytest.raises(InvalidInput, match=field):
        checked(ModelSpec(**values))
