"""The watchdog of blocking calls goes on watching, whatever one of them does."""

import threading

from expertmesh_controller.gateway.dispatch.links.watchdog import Watchdog


def test_a_call_that_cannot_be_cancelled_leaves_the_others_watched(caplog):
    watchdog, cancelled = Watchdog(), threading.Event()

    def refuse() -> None:
        raise RuntimeError("gone already")

    try:
        watchdog.guard(refuse).expires_at = 0.0
        watchdog.guard(cancelled.set).expires_at = 0.0
        assert cancelled.wait(10)
        later = threading.Event()
        watchdog.guard(later.set).expires_at = 0.0
        assert later.wait(10)
    finally:
        watchdog.close()
    assert "could not be cancelled" in caplog.text


def test_a_disarmed_limit_cancels_nothing():
    watchdog, disarmed, other = Watchdog(), threading.Event(), threading.Event()
    try:
        limit = watchdog.guard(disarmed.set)
        limit.expires_at = None
        watchdog.guard(other.set).expires_at = 0.0
        assert other.wait(10)
        assert not disarmed.is_set()
    finally:
        watchdog.close()
