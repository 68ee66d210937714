"""The beat of a job worker: it tells the store every half second that it lives, and which task it runs."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

import redis

from expertmesh_common.jobs.wire import BEAT_EVERY_S, BEAT_TTL_S, NEWEST_BEAT_KEY, Beat, beat_key
from expertmesh_common.store_keys import STORE_PREFIX
from expertmesh_forge.jobs.line import ASK_S

__all__ = ["beating"]

log = logging.getLogger(__name__)


def beating(url: str, worker: str, running: Callable[[], str]) -> threading.Thread:
    """Beat for `worker` until the process ends; `running` tells the id of its task, "" for none."""
    store = redis.from_url(url, socket_timeout=ASK_S, socket_connect_timeout=ASK_S)
    thread = threading.Thread(target=_beat, args=(store, worker, running), name="beat", daemon=True)
    thread.start()
    return thread


def _beat(store: redis.Redis, worker: str, running: Callable[[], str]) -> None:
    never, ttl_ms = threading.Event(), int(1000 * BEAT_TTL_S)
    while not never.wait(BEAT_EVERY_S):
        # A set may change while it is read: then the last beat counts a little longer.
        with contextlib.suppress(RuntimeError):
            beat = Beat(worker=worker, running=running()).model_dump_json()
            try:
                for key in (beat_key(worker), NEWEST_BEAT_KEY):
                    store.set(f"{STORE_PREFIX}{key}", beat, px=ttl_ms)
            except redis.RedisError as error:
                log.warning("the store did not take the beat: %s", error)
