"""The SDK against a real server: whole answers, broken streams, refusals."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from expertmesh import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    Overloaded,
    ResumePolicy,
    StreamNotFinished,
    Unauthenticated,
    Unavailable,
)
from unit.client.scripted_mesh import WORDS, breaks_after, finished, token, whole

QUICK = ResumePolicy(base_s=0.001, max_s=0.002)
TEXT = "".join(WORDS)
IDS = tuple(100 + position for position in range(len(WORDS)))


def test_tokens_arrive_in_order_and_the_result_is_the_whole_answer(serve):
    mesh = serve(whole)
    with Client(mesh.address) as client:
        stream = client.generate("Capital?", max_tokens=7)
        tokens = list(stream)
    assert [t.position for t in tokens] == list(range(7))
    assert stream.result.text == TEXT
    assert stream.result.token_ids == IDS
    assert (stream.result.finish_reason, stream.result.ttft_ms) == ("stop", 12.5)
    assert stream.result.resumed == 0


def test_the_result_does_not_exist_before_the_end(serve):
    mesh = serve(whole)
    with Client(mesh.address) as client, client.generate("x") as stream:
        next(stream)
        with pytest.raises(StreamNotFinished):
            _ = stream.result


def test_a_broken_stream_is_continued_from_where_it_was(serve):
    mesh = serve(breaks_after(2), breaks_after(0), breaks_after(3), whole)
    with Client(mesh.address, resume=QUICK) as client:
        answer = client.complete("x", temperature=0.5, seed=9)
    assert answer.token_ids == IDS
    assert answer.text == TEXT
    assert answer.resumed == 3
    assert [list(r.resume_token_ids) for r in mesh.requests] == [[], [100, 101], [100, 101], [100, 101, 102, 103, 104]]
    assert len({r.request_id for r in mesh.requests}) == 1
    assert all(r.sampling.seed == 9 for r in mesh.requests)


async def test_the_asyncio_client_continues_a_broken_stream_as_well(serve):
    mesh = serve(breaks_after(4), whole)
    async with AsyncClient(mesh.address, resume=QUICK) as client:
        stream = client.generate("x")
        positions = [t.position async for t in stream]
    assert positions == list(range(7))
    assert (stream.result.text, stream.result.resumed) == (TEXT, 1)


def test_tokens_that_a_server_repeats_reach_the_caller_once(serve):
    async def repeats(request, context):
        for position in range(len(WORDS)):
            yield token(position)
        yield finished()

    mesh = serve(breaks_after(3), repeats)
    with Client(mesh.address, resume=QUICK) as client:
        assert client.complete("x").token_ids == IDS


def test_a_token_that_is_missing_is_an_error_not_a_shorter_answer(serve):
    async def skips(request, context):
        yield token(0)
        yield token(2)

    mesh = serve(skips)
    with Client(mesh.address) as client, pytest.raises(Internal, match="token 1 is missing"):
        client.complete("x")


def test_a_stream_that_ends_without_its_last_message_is_resumed(serve):
    async def stops_short(request, context):
        yield token(0)

    mesh = serve(stops_short, whole)
    with Client(mesh.address, resume=QUICK) as client:
        assert client.complete("x").token_ids == IDS


def test_text_held_back_by_the_server_comes_last(serve):
    async def holds_back(request, context):
        yield token(0)
        yield finished(" and more")

    mesh = serve(holds_back)
    with Client(mesh.address) as client:
        stream = client.generate("x")
        assert list(stream.texts()) == ["The", " and more"]
        assert stream.result.text == "The and more"


def test_resuming_ends_when_no_attempt_brings_a_token(serve):
    mesh = serve(breaks_after(1), breaks_after(0))
    with Client(mesh.address, resume=ResumePolicy(attempts=4, base_s=0.001)) as client, pytest.raises(Unavailable):
        client.complete("x")
    assert len(mesh.requests) == 4


def test_resuming_ends_with_the_deadline(serve):
    mesh = serve(breaks_after(1), breaks_after(0))
    began = time.monotonic()
    with (
        Client(mesh.address, resume=ResumePolicy(attempts=1000, base_s=0.05, max_s=0.05)) as client,
        pytest.raises((DeadlineExceeded, Unavailable)),
    ):
        client.complete("x", deadline_s=0.4)
    assert time.monotonic() - began < 5


def test_a_silent_server_is_given_up_at_the_deadline(serve):
    async def silent(request, context):
        yield token(0)
        await asyncio.Event().wait()

    mesh = serve(silent)
    with Client(mesh.address) as client, pytest.raises(DeadlineExceeded):
        client.complete("x", deadline_s=0.3)


def test_a_refusal_for_load_is_the_callers_when_it_lasts(serve):
    mesh = serve(breaks_after(0, grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms=20))
    with Client(mesh.address) as client, pytest.raises(Overloaded) as caught:
        client.complete("x")
    assert caught.value.retry_after_ms == 20
    assert len(mesh.requests) == 3


def test_a_refusal_for_load_is_the_callers_at_once_when_the_deadline_is_nearer_than_the_retry(serve):
    mesh = serve(breaks_after(0, grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms=60_000))
    with Client(mesh.address) as client, pytest.raises(Overloaded):
        client.complete("x", deadline_s=30)
    assert len(mesh.requests) == 1


def test_a_refusal_for_load_is_waited_out_in_mid_answer(serve):
    mesh = serve(breaks_after(2), breaks_after(0, grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms=20), whole)
    with Client(mesh.address, resume=QUICK) as client:
        assert client.complete("x").token_ids == IDS


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
        (grpc.StatusCode.INTERNAL, Internal),
    ],
)
def test_other_failures_are_raised_at_once_with_the_servers_words(serve, code, kind):
    mesh = serve(breaks_after(1, code))
    with Client(mesh.address) as client, pytest.raises(kind, match="scripted failure"):
        client.complete("x")
    assert len(mesh.requests) == 1


def test_closing_a_stream_ends_iteration_and_complete_says_so(serve):
    mesh = serve(whole)
    with Client(mesh.address) as client:
        stream = client.generate("x")
        next(stream)
        stream.close()
        with pytest.raises(Cancelled):
            stream.complete()


def test_nobody_there_is_one_error_that_names_the_address(tmp_path):
    with Client(f"unix:{tmp_path}/nobody", resume=QUICK) as client, pytest.raises(Unavailable, match="nobody"):
        client.complete("x")


def test_the_token_travels_with_every_call(serve):
    mesh = serve(whole)
    with Client(mesh.address, token="open-sesame") as client:
        client.complete("x")
    assert mesh.metadata[0]["authorization"] == "Bearer open-sesame"


def test_tokenize_and_models_return_plain_values(serve):
    mesh = serve(whole)
    with Client(mesh.address) as client:
        assert client.tokenize("ab").pieces == ("a", "b")
        assert client.models()[0].name == "tiny"
        with pytest.raises(InvalidRequest, match="text is not allowed"):
            client.tokenize("refuse")


async def test_the_asyncio_client_tokenizes_and_lists_models(serve):
    mesh = serve(whole)
    async with AsyncClient(mesh.address) as client:
        assert (await client.tokenize("abc")).ids == (0, 1, 2)
        assert (await client.models())[0].ready
        with pytest.raises(InvalidRequest):
            await client.tokenize("refuse")
