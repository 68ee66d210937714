"""Settings of the control loop. Times are seconds, sizes bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """Read once at the edge and passed down; each default says why."""

    lease_s: float = 3.0
    """A worker that was silent this long is lost: six heartbeats, so that one slow second loses nobody."""

    heartbeat_s: float = 0.5

    pulse_s: float = 1.0
    """A worker hears something at least this often; one that hears nothing for a lease looks for a controller anew."""

    suspicion_s: float = 3.0
    """A worker that a gateway had no link to stays suspected this long after it was last named: three reports."""

    confirm_s: float = 0.8
    """A worker that is still named after this long is unreachable: by a second report, not by one failed call."""

    probation_s: float = 3.5
    """Whoever joined later than this may be one that gateways cannot reach, and they did not have the time to say so:
    a link is overdue after 2 s, and told within another."""

    order_timeout_s: float = 30.0
    """An order without an answer failed: a 100 MB expert over a 50 Mbit/s link takes 16 s."""

    retry_first_s: float = 0.5
    retry_most_s: float = 30.0
    """A failed load waits this long before the same worker is asked again; doubled each time, up to `retry_most_s`."""

    gather_s: float = 0.02
    """Finished loads are gathered this long into one epoch step; a lost worker is never waited with."""

    tick_s: float = 0.1
    """How often leases, timeouts and retries are looked at when nothing happens."""

    drain_grace_s: float = 0.5
    """An instance stays loaded this long after the last gateway learnt that it is not routed to."""

    loads_per_worker: int = 4
    """Loads ordered at once: enough to overlap fetching and loading, few enough to change our mind."""

    leader_lease_s: float = 3.0
    """How long the store lets us lead without a renewal; we renew three times as often."""

    expected_workers: int = 0
    """Wait for this many workers before the first placement (0: unknown); saves moving experts right after start."""

    settle_quiet_s: float = 0.5
    settle_most_s: float = 3.0
    """The first placement waits until nobody joined for `settle_quiet_s`; after `settle_most_s` for nobody."""

    leave_most_s: float = 10.0
    """A leaving worker is let go after this time even if its experts found no other home."""

    rebalance_ratio: float = 1.25
    """A placement that keeps what is loaded is given up for a fresh one only if layers take this much longer."""

    journal_entries: int = 1000
