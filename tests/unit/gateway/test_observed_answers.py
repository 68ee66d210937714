"""Requests are counted by how they ended, under names that no caller can choose."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from expertmesh_api.v1 import inference_pb2
from expertmesh_common.errors import Exhausted
from expertmesh_common.observability.request_context import request_id
from expertmesh_controller.gateway.answering import Caller
from expertmesh_controller.gateway.observing.answers import ObservedAnswering

TOKEN = inference_pb2.GenerateResponse(token=inference_pb2.Token(id=1))
END = inference_pb2.GenerateResponse(
    finished=inference_pb2.Finished(reason=inference_pb2.FINISH_REASON_STOP, prompt_tokens=3, ttft_ms=4)
)
CALLER = Caller("somebody", "r1")


class Scripted:
    """Yields what it was given, then raises, if there is something to raise, or waits."""

    def __init__(self, events, error: BaseException | None = None, waits: bool = False) -> None:
        self._events, self._error, self._waits = events, error, waits
        self.closed = False

    async def generate(self, request, deadline_s, caller):
        try:
            for event in self._events:
                yield event
            if self._waits:
                await asyncio.Event().wait()
            if self._error is not None:
                raise self._error
        finally:
            self.closed = True


def observed(inner: Scripted) -> ObservedAnswering:
    return ObservedAnswering(inner, lambda name: name if name == "tiny" else "")


async def read(answering: ObservedAnswering, model: str = "tiny") -> list:
    return [r async for r in answering.generate(inference_pb2.GenerateRequest(model=model), None, CALLER)]


async def test_a_whole_answer_is_counted_with_its_tokens_and_told_in_one_line(caplog):
    answering = observed(Scripted([TOKEN, TOKEN, END]))
    with caplog.at_level(logging.INFO):
        assert await read(answering) == [TOKEN, TOKEN, END]
    assert answering.counts.outcomes == {("tiny", "generate", "ok"): 1}
    assert answering.counts.tokens == {("tiny", "prompt"): 3, ("tiny", "completion"): 2}
    (record,) = caplog.records
    assert "generate ok model=tiny caller=somebody" in record.message
    assert record.message.endswith("prompt_tokens=3 completion_tokens=2 finish=stop queue_ms=0 ttft_ms=4")
    assert request_id() == ""


@pytest.mark.parametrize(
    ("error", "outcome"), [(Exhausted("full"), "resource_exhausted"), (RuntimeError("a mistake"), "internal")]
)
async def test_an_answer_that_fails_is_counted_by_what_the_caller_got(error, outcome):
    answering = observed(Scripted([TOKEN], error))
    with pytest.raises(type(error)):
        await read(answering, model="a-name-that-nobody-serves")
    assert answering.counts.outcomes == {("", "generate", outcome): 1}
    assert answering.counts.tokens["", "completion"] == 1


async def test_a_reader_that_leaves_ends_the_answer_and_counts_as_cancelled():
    inner = Scripted([TOKEN, TOKEN, END])
    answering = observed(inner)
    async with contextlib.aclosing(
        answering.generate(inference_pb2.GenerateRequest(model="tiny"), None, CALLER)
    ) as answer:
        assert await anext(answer) == TOKEN
        assert request_id() == "r1"
    assert inner.closed
    assert answering.counts.outcomes == {("tiny", "generate", "cancelled"): 1}


async def test_a_task_that_is_cancelled_in_mid_answer_counts_as_cancelled():
    inner = Scripted([TOKEN], waits=True)
    answering = observed(inner)
    reading = asyncio.create_task(read(answering))
    await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert inner.closed
    assert answering.counts.outcomes == {("tiny", "generate", "cancelled"): 1}
