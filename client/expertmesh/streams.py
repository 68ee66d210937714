"""Answers as they arrive: iterate for tokens, ask for the whole when it is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from expertmesh.calls import Reply
from expertmesh.errors import Cancelled, ExpertmeshError, error_from_status
from expertmesh.generation import Generation
from expertmesh.types import Completion, Token
from expertmesh_api.v1 import inference_pb2 as pb

Opener = Callable[[pb.GenerateRequest, float], Reply]
AsyncReply = grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse]
AsyncOpener = Callable[[pb.GenerateRequest, float], AsyncReply]


def to_error(error: grpc.RpcError, address: str) -> ExpertmeshError:
    """The SDK's error for what gRPC raised; calls carry their status on the error itself."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    trailing = [(str(key), value) for key, value in error.trailing_metadata() or ()]
    return error_from_status(error.code(), error.details() or "", address, trailing)


class TokenStream:
    """An answer in the making. Nothing is sent before the first token is asked for.

    Iterating gives each Token once, also when the connection breaks on the way: the SDK asks again from where it was.
    Every step may raise an ExpertmeshError.
    """

    def __init__(self, generation: Generation, opener: Opener, address: str) -> None:
        self._generation = generation
        self._opener = opener
        self._address = address
        self._reply: Reply | None = None
        self._closed = False
        self._events = self._run()

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        return next(self._events)

    @property
    def result(self) -> Completion:
        """The whole answer, once iteration has ended; StreamNotFinished before."""
        return self._generation.result

    def complete(self) -> Completion:
        """Read the rest and return the whole answer."""
        for _ in self:
            pass
        if self._closed and not self._generation.finished:
            raise Cancelled("the stream was closed before the answer was complete")
        return self.result

    def texts(self) -> Iterator[str]:
        """Pieces of text as they become certain; joined they are `result.text`."""
        sent = 0
        for token in self:
            if token.text:
                sent += len(token.text)
                yield token.text
        if self._generation.finished and len(self.result.text) > sent:
            yield self.result.text[sent:]

    def close(self) -> None:
        """End the call; what was not read is lost."""
        self._closed = True
        if self._reply is not None:
            self._reply.cancel()

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
                error = to_error(broken, self._address)
            if self._generation.finished or self._closed:
                return
            time.sleep(self._generation.broken(error))

    def _read(self) -> Iterator[Token]:
        self._reply = self._opener(*self._generation.next_request())
        for response in self._reply:
            token = self._generation.accept(response)
            if token is not None:
                yield token


class AsyncTokenStream:
    """`TokenStream` for asyncio: `async for token in stream`, `await stream.complete()`."""

    def __init__(self, generation: Generation, opener: AsyncOpener, address: str) -> None:
        self._generation = generation
        self._opener = opener
        self._address = address
        self._reply: AsyncReply | None = None
        self._closed = False
        self._events = self._run()

    def __aiter__(self) -> AsyncIterator[Token]:
        return self

    async def __anext__(self) -> Token:
        return await anext(self._events)

    @property
    def result(self) -> Completion:
        """The whole answer, once iteration has ended; StreamNotFinished before."""
        return self._generation.result

    async def complete(self) -> Completion:
        """Read the rest and return the whole answer."""
        async for _ in self:
            pass
        if self._closed and not self._generation.finished:
            raise Cancelled("the stream was closed before the answer was complete")
        return self.result

    async def texts(self) -> AsyncIterator[str]:
        """Pieces of text as they become certain; joined they are `result.text`."""
        sent = 0
        async for token in self:
            if token.text:
                sent += len(token.text)
                yield token.text
        if self._generation.finished and len(self.result.text) > sent:
            yield self.result.text[sent:]

    def close(self) -> None:
        """End the call; what was not read is lost."""
        self._closed = True
        if self._reply is not None:
            self._reply.cancel()

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
                error = to_error(broken, self._address)
            except asyncio.CancelledError:
                # gRPC reports our own close() as a cancellation; anybody else's must go on.
                if not self._closed:
                    raise
            if self._generation.finished or self._closed:
                return
            await asyncio.sleep(self._generation.broken(error))

    async def _read(self) -> AsyncIterator[Token]:
        self._reply = self._opener(*self._generation.next_request())
        async for response in self._reply:
            token = self._generation.accept(response)
            if token is not None:
                yield token
