"""Rounds put together from prepared pieces: the same frames and the same judgements as on the long way."""

from __future__ import annotations

import time

import numpy as np
import pytest

from expertmesh_common.channel.frame import Reply, Status, encode_reply
from expertmesh_controller.gateway.dispatch.exchange import Call, Failure, HopTimeout, Task, exchange
from expertmesh_controller.gateway.dispatch.links.base import FramedLink, LinkDown, LinkTimeout
from expertmesh_controller.gateway.dispatch.links.local import LocalLink
from expertmesh_controller.gateway.dispatch.plan import plan_dispatch
from expertmesh_controller.gateway.dispatch.recurring import exchange_row, prepare
from expertmesh_controller.gateway.gating.routing import Routing
from rigs.expert_hosts import IdentityHost

HIDDEN = 24
DEADLINE_BYTES = slice(12, 16)


class WireLink(FramedLink):
    """Keeps what is sent; answers what it is told, or fails."""

    def __init__(self, name):
        super().__init__(name, "unix")
        self.sent, self.answer = [], None

    def send(self, frame, expires_at):
        if self.answer == "refuses":
            raise LinkDown("gone")
        self.sent.append(b"".join(frame))

    def receive(self, expires_at):
        if isinstance(self.answer, Exception):
            raise self.answer
        reply = self.answer or Reply.of_rows(7, np.full((1, HIDDEN), len(self.sent[-1]), np.float32))
        return memoryview(b"".join(encode_reply(reply)))

    def close(self):
        pass


def round_of(links, seed=0):
    experts = np.arange(6, dtype=np.int32)
    routing = Routing(1, np.zeros(6, np.int32), experts, np.linspace(0.5, 1, 6, dtype=np.float32), recurs=True)
    plan = plan_dispatch(routing, np.array([0, 2, 1, 0, 2, 0]))
    row = np.random.default_rng(seed).standard_normal((1, HIDDEN)).astype(np.float32)
    return Call(7, (1, 2), Task(99, 4, "output", row)), plan.messages


@pytest.fixture
def links():
    return [WireLink(f"w{n}") for n in range(3)]


def run(links, seed=0):
    call, messages = round_of(links)
    prepared = prepare(call, messages, links)
    later, _ = round_of(links, seed)
    return exchange_row(later, prepared, HopTimeout(), time.monotonic() + 5)


def test_the_frames_are_those_of_the_long_way_with_the_new_row(links):
    outcomes = run(links, seed=5)
    call, messages = round_of(links, seed=5)
    expected = exchange(call, messages, links, HopTimeout(), time.monotonic() + 5)

    for link in links:
        short, long = (bytearray(frame) for frame in link.sent)
        assert int.from_bytes(short[DEADLINE_BYTES], "little") > 0
        short[DEADLINE_BYTES] = long[DEADLINE_BYTES]
        assert short == long
    for found, wanted in zip(outcomes, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (Reply.stale(7, [1, 4]), {"status": Status.STALE, "missing": (1, 4), "broken": False}),
        (Reply.error(7, Status.FAILED, "no"), {"status": Status.FAILED, "broken": False}),
        (Reply.of_rows(6, np.zeros((1, HIDDEN), np.float32)), {"status": Status.FAILED, "broken": True}),
        (Reply.of_rows(7, np.zeros((2, HIDDEN), np.float32)), {"status": Status.FAILED, "broken": True}),
        (Reply.of_rows(7, np.zeros((1, HIDDEN), np.float64)), {"status": Status.FAILED, "broken": True}),
        (LinkDown("gone"), {"broken": True, "late": False}),
        (LinkTimeout("slow"), {"broken": True, "late": True}),
        ("refuses", {"broken": True, "late": False}),
    ],
)
def test_one_bad_answer_is_a_failure_and_the_others_count(links, answer, wanted):
    links[2].answer = answer

    first, second, third = run(links)

    assert isinstance(third, Failure)
    assert {name: getattr(third, name) for name in wanted} == wanted
    assert isinstance(first, np.ndarray)
    assert isinstance(second, np.ndarray)


def test_bytes_that_are_no_reply_break_the_link(links):
    links[0].receive = lambda expires_at: memoryview(b"HTTP/1.1 400 Bad Request" * 9)

    outcome = run(links)[0]

    assert isinstance(outcome, Failure)
    assert outcome.broken


@pytest.mark.parametrize("change", [lambda reply: reply[:-1], lambda reply: reply + b"\0"], ids=["short", "long"])
def test_a_reply_whose_length_is_not_what_its_head_says_breaks_the_link(links, change):
    sound = links[0].receive
    links[0].receive = lambda expires_at: memoryview(change(bytes(sound(expires_at))))

    outcome = run(links)[0]

    assert isinstance(outcome, Failure)
    assert outcome.broken


def test_a_round_with_experts_in_this_process_goes_the_long_way(links):
    links[1] = LocalLink("w1", IdentityHost())
    call, messages = round_of(links)

    assert prepare(call, messages, links) is None
