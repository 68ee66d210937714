"""A store in any server that speaks Redis (Redis, Valkey, a cluster of them), by URL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar, cast

import redis.asyncio
import redis.exceptions

from expertmesh_common.errors import Precondition, Unavailable
from expertmesh_common.store_keys import STORE_PREFIX as PREFIX
from expertmesh_controller.control.store.base import Lease, Store

Answer = TypeVar("Answer")

TIMEOUT_S = 1.0

ACQUIRE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
local term = tonumber(redis.call('GET', KEYS[2]) or '0')
if not holder then
  term = math.max(term, tonumber(ARGV[3])) + 1
  redis.call('SET', KEYS[2], string.format('%.0f', term))
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return term
"""
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end return 0"
# Both answer the newest term; they wrote only if it is the caller's.
PUT = """
local term = tonumber(redis.call('GET', KEYS[1]) or '0')
if term == tonumber(ARGV[1]) then redis.call('SET', KEYS[2], ARGV[2]) end
return term
"""
APPEND = """
local term = tonumber(redis.call('GET', KEYS[1]) or '0')
if term == tonumber(ARGV[1]) then
  redis.call('RPUSH', KEYS[2], ARGV[2])
  redis.call('LTRIM', KEYS[2], -tonumber(ARGV[3]), -1)
end
return term
"""


class RedisStore(Store):
    """Speaks to `url`: redis://host:port/db, rediss://..., unix:///path."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._redis = redis.asyncio.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, decode_responses=False
        )

    async def acquire(self, name: str, owner: str, ttl_s: float, above: int = 0) -> Lease | None:
        term = await self._script(ACQUIRE, [_lease(name), _term(name)], [owner, int(ttl_s * 1000), above])
        return Lease(name, owner, term) if term else None

    async def release(self, lease: Lease) -> None:
        await self._script(RELEASE, [_lease(lease.name)], [lease.owner])

    async def get(self, key: str) -> bytes | None:
        return cast("bytes | None", await self._ask(self._redis.get(PREFIX + key)))

    async def put(self, lease: Lease, key: str, value: bytes) -> None:
        newest = await self._script(PUT, [_term(lease.name), PREFIX + key], [lease.term, value])
        _fence(lease, newest)

    async def append(self, lease: Lease, key: str, value: bytes, keep: int) -> None:
        newest = await self._script(APPEND, [_term(lease.name), PREFIX + key], [lease.term, value, keep])
        _fence(lease, newest)

    async def tail(self, key: str, count: int) -> list[bytes]:
        values = self._redis.lrange(PREFIX + key, -count, -1)
        return list(await self._ask(cast("Awaitable[list[bytes]]", values)))

    async def close(self) -> None:
        await self._redis.aclose()

    async def _script(self, script: str, keys: list[str], arguments: list[Any]) -> int:
        return int(await self._ask(cast("Awaitable[int]", self._redis.eval(script, len(keys), *keys, *arguments))))

    async def _ask(self, answer: Awaitable[Answer]) -> Answer:
        """The answer; a server's trouble as `Unavailable`.

        The client waits with `asyncio.wait_for`, which in Python 3.11 swallows a cancellation that comes just when
        it is done; whoever cancelled us would wait for ever. So a cancellation that came meanwhile is raised again.
        """
        task = asyncio.current_task()
        cancelled = task.cancelling() if task is not None else 0
        try:
            value = await answer
        except redis.exceptions.ResponseError as error:
            # A server that is loading its file or has no disk is as good as gone.
            raise Unavailable(f"the store at {redacted(self.url)} refuses: {error}") from error
        except (redis.exceptions.RedisError, OSError) as error:
            raise Unavailable(f"the store at {redacted(self.url)} does not answer: {error}") from error
        finally:
            if task is not None and task.cancelling() > cancelled:
                raise asyncio.CancelledError
        return value


def _lease(name: str) -> str:
    return f"{PREFIX}lease:{name}"


def _term(name: str) -> str:
    return f"{PREFIX}term:{name}"


def _fence(lease: Lease, newest: int) -> None:
    if lease.term != newest:
        raise Precondition(f"lease {lease.name!r} of term {lease.term} is over: term {newest} holds it now")


def redacted(url: str) -> str:
    """The URL without user and password, fit for logs."""
    scheme, separator, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{separator}{place.rpartition('@')[2]}{slash}{path}"
