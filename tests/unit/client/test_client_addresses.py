"""Several gateways behind one client: where they are, who is asked next, and what is never asked twice."""

from __future__ import annotations

import os

import grpc
import pytest

from expertmesh import (
    AsyncClient,
    Client,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    ResumePolicy,
    Unavailable,
)
from expertmesh.addresses import addresses_of
from expertmesh.attempts import Attempts
from expertmesh.picking import AVOID_S, Picker, Way
from unit.client.scripted_mesh import WORDS, breaks_after, whole

QUICK = ResumePolicy(base_s=0.001, max_s=0.002)
IDS = tuple(100 + position for position in range(len(WORDS)))


@pytest.mark.parametrize(
    ("given", "environment", "found"),
    [
        ("a:1", {}, ("a:1",)),
        ("a:1, b:2,a:1", {}, ("a:1", "b:2")),
        (["a:1,b:2", "unix:/run/mesh.sock"], {}, ("a:1", "b:2", "unix:/run/mesh.sock")),
        ("[::1]:7070", {}, ("[::1]:7070",)),
        (None, {}, ("localhost:7070",)),
        (None, {"EXPERTMESH_ADDRESS": "a:1,b:2"}, ("a:1", "b:2")),
        ("c:3", {"EXPERTMESH_ADDRESS": "a:1"}, ("c:3",)),
    ],
)
def test_addresses_come_from_the_caller_then_the_environment_then_this_machine(given, environment, found):
    assert addresses_of(given, environment) == found


@pytest.mark.parametrize("given", ["", " , ", [], "host", "host:port", ":7070", "a:70000", "unix:", ["a:1", "b"]])
def test_what_is_no_address_is_refused(given):
    with pytest.raises(InvalidRequest, match="address"):
        addresses_of(given, {})


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_calls_begin_at_one_address_after_the_other():
    picker = Picker(3, first=0)
    assert [picker.order() for _ in range(4)] == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]


def test_an_address_that_failed_comes_last_until_it_works_or_some_time_has_passed():
    now = Time()
    picker = Picker(3, now, first=0)
    picker.failed(0)
    assert [picker.order() for _ in range(3)] == [[1, 2, 0], [1, 2, 0], [2, 1, 0]]
    now.now += AVOID_S
    assert picker.order() == [0, 1, 2]
    picker.failed(1)
    picker.worked(1)
    assert picker.order() == [1, 2, 0]


def test_every_address_is_tried_once_before_any_is_tried_again():
    way = Way(Picker(3, first=1))
    assert [(way.next(), way.failed(down=True)) for _ in range(3)] == [(1, True), (2, True), (0, False)]
    assert {way.next() for _ in range(3)} == {0, 1, 2}


def test_after_an_address_that_worked_for_a_while_all_others_are_there_to_be_tried():
    way = Way(Picker(2, first=0))
    assert (way.next(), way.failed(down=True)) == (0, True)
    assert way.next() == 1
    way.worked()
    assert way.failed(down=True)
    assert (way.next(), way.failed(down=True)) == (0, False)


def test_an_answer_that_broke_off_goes_on_at_another_gateway_at_once(serve):
    meshes = [serve(breaks_after(3)), serve(breaks_after(3))]
    slow = ResumePolicy(base_s=60, max_s=60)  # no wait fits into the deadline
    with Client([m.address for m in meshes], resume=slow, deadline_s=20) as client:
        stream = client.generate("x")
        first = next(stream)
        asked = stream.address
        tokens = [first, *(next(stream) for _ in range(4))]
        assert [t.id for t in tokens] == list(IDS[:5])
        assert stream.address != asked
    assert sorted(list(r.resume_token_ids) for m in meshes for r in m.requests) == [[], [100, 101, 102]]


async def test_the_asyncio_client_goes_on_at_another_gateway_as_well(serve):
    meshes = [serve(breaks_after(2), whole), serve(breaks_after(2), whole)]
    async with AsyncClient(",".join(m.address for m in meshes), resume=QUICK) as client:
        answer = await client.complete("x")
    assert answer.token_ids == IDS
    assert answer.resumed == 2
    assert sorted(len(m.requests) for m in meshes) == [1, 2]


def test_nobody_is_lost_when_all_gateways_but_one_are_gone(serve, tmp_path):
    mesh = serve(whole)
    addresses = [f"unix:{tmp_path}/gone-{n}" for n in range(4)] + [mesh.address]
    with Client(addresses, resume=ResumePolicy(attempts=1, first_attempts=1)) as client:
        for _ in range(5):
            assert client.complete("x").token_ids == IDS
            assert client.tokenize("ab").pieces == ("a", "b")


def test_calls_are_spread_over_the_gateways(serve):
    meshes = [serve(whole), serve(whole)]
    with Client([m.address for m in meshes]) as client:
        for number in range(6):
            client.tokenize(str(number))
    assert [len(m.texts) for m in meshes] == [3, 3]


def test_a_gateway_that_is_full_passes_the_call_on(serve):
    meshes = [serve(whole), serve(whole)]
    for mesh in meshes:
        mesh.failing = [(grpc.StatusCode.RESOURCE_EXHAUSTED, 60_000)]
    with Client([m.address for m in meshes]) as client:
        with pytest.raises(Overloaded):
            client.tokenize("a", deadline_s=5)
        meshes[0].failing = [(grpc.StatusCode.RESOURCE_EXHAUSTED, 60_000)]
        for _ in range(2):
            client.tokenize("b", deadline_s=5)
    assert [len(m.texts) for m in meshes] in ([0, 2], [1, 1])


def test_calls_without_a_stream_are_asked_again_as_well(serve):
    mesh = serve(whole)
    mesh.failing = [(grpc.StatusCode.UNAVAILABLE, 0), (grpc.StatusCode.RESOURCE_EXHAUSTED, 5)]
    with Client(mesh.address, resume=QUICK) as client:
        assert client.tokenize("ab").ids == (0, 1)
        mesh.failing = [(grpc.StatusCode.UNAVAILABLE, 0)] * 3
        with pytest.raises(Unavailable):
            client.tokenize("ab")
        assert mesh.failing == []


def test_what_one_gateway_does_not_offer_is_asked_of_the_others(serve):
    meshes = [serve(whole), serve(whole)]
    with Client([m.address for m in meshes]) as client, pytest.raises(Exception, match="not found") as caught:
        client.nodes()
    assert type(caught.value).__name__ == "Unsupported"


async def test_a_score_is_one_plain_value(serve):
    mesh = serve(whole)
    with Client(mesh.address) as client:
        score = client.score("ab", top_logprobs=1)
    assert (score.ids, score.pieces, score.logprobs) == ((1, 2), ("a", "b"), (None, -0.5))
    assert (score.total_logprob, score.tokens[1].top_logprobs[0].id) == (-0.5, 2)
    assert score.perplexity == pytest.approx(1.6487, abs=1e-4)
    assert len(score.request_id) == 32
    async with AsyncClient(mesh.address) as client:
        assert (await client.score(ids=[1, 2], request_id="mine")).request_id == "mine"


def test_a_client_from_before_a_fork_says_so(serve, monkeypatch):
    mesh = serve(whole)
    with Client(mesh.address) as client:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(FailedPrecondition, match="make a client in each of them"):
            client.tokenize("x")
        with pytest.raises(FailedPrecondition):
            client.generate("x")
        monkeypatch.undo()
        assert client.tokenize("x").ids == (0,)


def ask_on(attempts, answers):
    for _ in range(20):
        place, _ = attempts.next()
        attempts.failed(answers[place])


@pytest.mark.parametrize("first", [0, 1])
def test_a_refusal_counts_more_than_that_another_gateway_is_away(first):
    refused, away = NotFound("no such model"), Unavailable("connection refused")
    attempts = Attempts(QUICK, 5.0, Way(Picker(2, first=first)))

    with pytest.raises(NotFound, match="no such model"):
        ask_on(attempts, (refused, away))
