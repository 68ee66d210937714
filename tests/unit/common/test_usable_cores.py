"""Cores that may be used: affinity, and the control group's quota."""

from __future__ import annotations

import os

import psutil
import pytest

from expertmesh_common.usable_cores import usable_cores


def test_without_a_quota_they_are_those_of_the_affinity(tmp_path) -> None:
    assert usable_cores(tmp_path) == len(os.sched_getaffinity(0)) <= psutil.cpu_count()
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("text", "cores"), [("50000 100000", 1), ("199999 100000", 1), ("99900000 100000", None)])
def test_a_quota_cuts_them_to_whole_cores_and_leaves_one(tmp_path, text: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(f"{text}\n")
    assert usable_cores(tmp_path) == (cores or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("text", ["", "x y", "1", "100000 0"])
def test_a_quota_that_cannot_be_read_is_none(tmp_path, text: str) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(tmp_path) == len(os.sched_getaffinity(0))
