"""When to make the first placement after a start."""

from __future__ import annotations

from collections.abc import Collection

from expertmesh_controller.control.membership.state import Cluster
from expertmesh_controller.control.settings import ControlSettings


def settled(
    cluster: Cluster, known: Collection[str], leading_since: float, now: float, settings: ControlSettings
) -> bool:
    """Whether the workers that we may hope for are here, or were waited for long enough.

    `known` held experts before this controller started. Deciding too early would move experts that are about to
    come back, and would tell gateways to forget workers that still serve them.
    """
    if not cluster.members:
        return False
    if now - leading_since >= settings.settle_most_s:
        return True
    if known or settings.expected_workers:
        return set(known) <= cluster.members.keys() and len(cluster.members) >= settings.expected_workers
    return now - max(m.joined_at for m in cluster.members.values()) >= settings.settle_quiet_s
