"""Answers as they arrive: iterate for tokens, ask for the whole when it is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Generic, Self

import grpc
import grpc.aio

from expertmesh.calls import Cancellable, bind_generate, bind_generate_async
from expertmesh.endpoints import Channel, Endpoints, to_error
from expertmesh.errors import Cancelled
from expertmesh.generation import Generation
from expertmesh.types import Completion, Token


class _Answer(Generic[Channel]):
    """What both streams have besides reading: one answer, where it was asked for, and its end."""

    def __init__(self, generation: Generation, endpoints: Endpoints[Channel]) -> None:
        self._generation = generation
        self._endpoints = endpoints
        self.address = ""
        """The gateway that was asked last."""
        self._reply: Cancellable | None = None
        self._closed = False

    @property
    def request_id(self) -> str:
        """What logs and traces name this answer, the same for every attempt."""
        return self._generation.request_id

    @property
    def result(self) -> Completion:
        """The whole answer, once iteration has ended; StreamNotFinished before."""
        return self._generation.result

    def close(self) -> None:
        """End the call; what was not read is lost."""
        self._closed = True
        if self._reply is not None:
            self._reply.cancel()

    def _whole(self) -> Completion:
        """`result`, after the last token that there was to read."""
        if self._closed and not self._generation.finished:
            raise Cancelled("the stream was closed before the answer was complete")
        return self.result

    def _after(self, sent: int) -> str:
        """The text that came with no token, after `sent` characters."""
        return self.result.text[sent:] if self._generation.finished else ""


class TokenStream(_Answer[grpc.Channel]):
    """An answer in the making. Nothing is sent before the first token is asked for.

    Iterating gives each Token once, also when the connection breaks on the way: the SDK asks again from where it was,
    if it can on another gateway, and the tokens are those of an undisturbed answer. `deadline_s` runs from the call
    that made the stream. Every step may raise an ExpertmeshError. One thread reads a stream; any may close it.
    """

    def __init__(self, generation: Generation, endpoints: Endpoints[grpc.Channel]) -> None:
        super().__init__(generation, endpoints)
        self._events = self._run()

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        return next(self._events)

    def complete(self) -> Completion:
        """Read the rest and return the whole answer."""
        for _ in self:
            pass
        return self._whole()

    def texts(self) -> Iterator[str]:
        """Pieces of text as they become certain; joined they are `result.text`."""
        sent = 0
        for token in self:
            if token.text:
                sent += len(token.text)
                yield token.text
        if rest := self._after(sent):
            yield rest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> Iterator[Token]:
        while not self._closed:
            error = None
            try:
                yield from self._read()
            except grpc.RpcError as broken:
                error = to_error(broken, self.address)
            if self._generation.finished or self._closed:
                return
            time.sleep(self._generation.broken(error))

    def _read(self) -> Iterator[Token]:
        place, request, remaining_s = self._generation.next_request()
        at = self._endpoints[place]
        self.address = at.address
        self._reply = reply = bind_generate(at.channel)(request, timeout=remaining_s, metadata=at.carried())
        for response in reply:
            token = self._generation.accept(response)
            if token is not None:
                yield token


class AsyncTokenStream(_Answer[grpc.aio.Channel]):
    """`TokenStream` for asyncio: `async for token in stream`, `await stream.complete()`."""

    def __init__(self, generation: Generation, endpoints: Endpoints[grpc.aio.Channel]) -> None:
        super().__init__(generation, endpoints)
        self._events = self._run()

    def __aiter__(self) -> AsyncIterator[Token]:
        return self

    async def __anext__(self) -> Token:
        return await anext(self._events)

    async def complete(self) -> Completion:
        """Read the rest and return the whole answer."""
        async for _ in self:
            pass
        return self._whole()

    async def texts(self) -> AsyncIterator[str]:
        """Pieces of text as they become certain; joined they are `result.text`."""
        sent = 0
        async for token in self:
            if token.text:
                sent += len(token.text)
                yield token.text
        if rest := self._after(sent):
            yield rest

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _run(self) -> AsyncIterator[Token]:
        while not self._closed:
            error = None
            try:
                async for token in self._read():
                    yield token
            except grpc.RpcError as broken:
                error = to_error(broken, self.address)
            except asyncio.CancelledError:
                # gRPC reports our own close() as a cancellation; anybody else's must go on.
                if not self._closed:
                    raise
            if self._generation.finished or self._closed:
                return
            await asyncio.sleep(self._generation.broken(error))

    async def _read(self) -> AsyncIterator[Token]:
        place, request, remaining_s = self._generation.next_request()
        at = self._endpoints[place]
        self.address = at.address
        self._reply = reply = bind_generate_async(at.channel)(request, timeout=remaining_s, metadata=at.carried())
        async for response in reply:
            token = self._generation.accept(response)
            if token is not None:
                yield token
