"""How jobs travel: one Celery queue on the store's own server, and two keys of the store beside it.

A job worker writes its beat under `beat_key` and the name of the newest one under `NEWEST_BEAT_KEY`; both end by
themselves. The controller lists under `CANCELLED_KEY` the ids of tasks that shall end.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ConfigDict

from expertmesh_common.errors import InvalidInput
from expertmesh_common.store_keys import STORE_PREFIX

QUEUE = "jobs"
PROGRESS = "PROGRESS"
"""The state of a running task in Celery's results; its meta data is an `importing.Progress`."""

NEWEST_BEAT_KEY = "jobs/worker"
CANCELLED_KEY = "jobs/cancelled"

BEAT_EVERY_S = 0.5
BEAT_TTL_S = 4.0
"""A job worker that was silent for so long is dead."""
LOOK_EVERY_S = 0.25
"""How often a task tells its progress, and asks whether it shall end."""
RESULT_KEPT_S = 7 * 24 * 3600
HIDDEN_S = 60
"""A message that a dead worker had taken and not begun comes back after this long; those of tasks under way do not."""


class Beat(BaseModel):
    """A job worker lives, and runs the task `running` ("" is none)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    worker: str
    running: str = ""


def beat_key(worker: str) -> str:
    return f"jobs/worker/{worker}"


def encode_ids(ids: tuple[str, ...]) -> bytes:
    return json.dumps(ids).encode()


def decode_ids(data: bytes | None) -> tuple[str, ...]:
    return () if data is None else tuple(json.loads(data))


def celery_url(url: str) -> str:
    """The store's URL as Celery writes it.

    Raises:
        InvalidInput: it is no redis://, rediss:// or unix:// URL.

    """
    parts = urlsplit(url)
    if parts.scheme == "redis":
        return url
    if parts.scheme == "rediss":
        # Celery refuses to guess; the store's own client checks certificates too.
        required = "" if "ssl_cert_reqs=" in parts.query else f"{'&' if parts.query else '?'}ssl_cert_reqs=required"
        return f"{url}{required}"
    if parts.scheme == "unix":
        database = dict(part.partition("=")[::2] for part in parts.query.split("&")).get("db", "0")
        login, at, _ = parts.netloc.rpartition("@")
        return f"redis+socket://{login}{at}{quote(parts.path)}?virtual_host={database}"
    raise InvalidInput(f"jobs need a store that speaks Redis, by redis://, rediss:// or unix://, not {parts.scheme!r}")


def celery_settings(url: str) -> dict[str, Any]:
    """What both ends of the queue must agree on, for `Celery.conf.update`."""
    transport = {
        "global_keyprefix": f"{STORE_PREFIX}celery:",
        "visibility_timeout": HIDDEN_S,
        "socket_timeout": 5.0,
        "socket_connect_timeout": 5.0,
    }
    return {
        "broker_url": celery_url(url),
        "result_backend": celery_url(url),
        "broker_transport_options": transport,
        "result_backend_transport_options": {"global_keyprefix": f"{STORE_PREFIX}celery:"},
        "redis_socket_timeout": 5.0,
        "redis_socket_connect_timeout": 5.0,
        "task_default_queue": QUEUE,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_expires": RESULT_KEPT_S,
        "broker_connection_retry_on_startup": True,
    }
