"""Several answers to one request as one stream of events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["merged"]

AT_ONCE = 8
"""Answers of one request that run at the same time: the rest wait here, and leave slots to other callers."""

_WAITING_EVENTS = 64

Event = TypeVar("Event")
Source = Callable[[int], AsyncGenerator[Event, None]]


@dataclass(frozen=True, slots=True)
class _Broken:
    error: Exception


async def merged(source: Source[Event], count: int) -> AsyncGenerator[tuple[int, Event], None]:
    """(number of the answer, event) of the answers 0 to `count` - 1, as they come; `source` makes the stream of one.

    The first error of any ends all. Closing this closes all.
    """
    if count == 1:
        async with contextlib.aclosing(source(0)) as only:
            async for event in only:
                yield 0, event
        return
    async with contextlib.aclosing(_together(source, count)) as events:
        async for numbered in events:
            yield numbered


async def _together(source: Source[Event], count: int) -> AsyncGenerator[tuple[int, Event], None]:
    queue: asyncio.Queue[tuple[int, Event] | _Broken | None] = asyncio.Queue(_WAITING_EVENTS)
    places = asyncio.Semaphore(AT_ONCE)

    async def pump(number: int) -> None:
        try:
            async with places, contextlib.aclosing(source(number)) as events:
                async for event in events:
                    await queue.put((number, event))
            await queue.put(None)
        except Exception as error:  # noqa: BLE001 - raised where the events are read
            await queue.put(_Broken(error))

    pumps = [asyncio.create_task(pump(number)) for number in range(count)]
    try:
        while count:
            item = await queue.get()
            if isinstance(item, _Broken):
                raise item.error
            if item is None:
                count -= 1
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
