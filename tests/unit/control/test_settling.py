"""When the first placement is made."""

from __future__ import annotations

import pytest

from expertmesh_controller.control.membership.hello import Capabilities, Hello
from expertmesh_controller.control.membership.state import Cluster, Limits, Member
from expertmesh_controller.control.settings import ControlSettings
from expertmesh_controller.control.settling import settled

DEFAULT = ControlSettings(settle_quiet_s=0.5, settle_most_s=3.0)
EXPECTING = ControlSettings(settle_quiet_s=0.5, settle_most_s=3.0, expected_workers=3)


def cluster(**joined_at: float) -> Cluster:
    found = Capabilities(1, 1, 1, 0.0, 0.0, 1.0, ())
    return Cluster(
        Limits(3.0, 30.0, 0.5, 30.0),
        {
            w: Member(Hello(w, "g", "0.1.0", "h", found, (), {}), n, at, at, {})
            for n, (w, at) in enumerate(joined_at.items())
        },
    )


@pytest.mark.parametrize(
    ("joined_at", "known", "settings", "now", "expected"),
    [
        ({}, (), DEFAULT, 99.0, False),
        ({"a": 1.0}, (), DEFAULT, 1.4, False),
        ({"a": 1.0}, (), DEFAULT, 1.5, True),
        ({"a": 1.0, "b": 1.4}, (), DEFAULT, 1.6, False),
        ({"a": 2.9}, (), DEFAULT, 3.0, True),
        ({"a": 1.0, "b": 1.0}, (), EXPECTING, 2.9, False),
        ({"a": 1.0, "b": 1.0, "c": 1.1}, (), EXPECTING, 1.1, True),
        ({"a": 1.0, "b": 1.0}, (), EXPECTING, 3.0, True),
        ({"a": 1.0}, ("a", "b"), DEFAULT, 2.9, False),
        ({"a": 1.0, "b": 1.0}, ("a", "b"), DEFAULT, 1.0, True),
    ],
)
def test_the_first_placement_waits_for_whom_it_may_hope_for(joined_at, known, settings, now, expected) -> None:
    assert settled(cluster(**joined_at), known, 0.0, now, settings) is expected
