"""Single rows put together from pieces: the same frames and the same judgements as on the long way."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from expertmesh_common.channel.frame import Reply, Status, decode_request, encode_reply
from expertmesh_controller.gateway.dispatch.exchange import Call, Failure, HopTimeout, Task, exchange
from expertmesh_controller.gateway.dispatch.links.base import FramedLink, LinkDown, LinkTimeout
from expertmesh_controller.gateway.dispatch.links.local import LocalLink
from expertmesh_controller.gateway.dispatch.plan import plan_dispatch
from expertmesh_controller.gateway.dispatch.recurring import LayerPost, exchange_row
from expertmesh_controller.gateway.gating.routing import RowRouting
from rigs.expert_hosts import IdentityHost

HIDDEN, EXPERTS, WORKERS = 24, 12, 3
EPOCH = (1, 2)
OWNER = np.arange(EXPERTS) % WORKERS
DEADLINE_BYTES = slice(12, 16)


class WireLink(FramedLink):
    """Keeps what is sent; answers what it is told, or fails. Unless told, it sums weights as identity experts do."""

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
        reply = self.answer or IdentityHost().execute(decode_request(self.sent[-1]))
        return memoryview(b"".join(encode_reply(reply)))

    def close(self):
        pass


def routing_of(weights):
    """One row's, as float32 values: {expert: weight}."""
    experts = tuple(sorted(weights))
    return RowRouting(experts, tuple(float(np.float32(weights[expert])) for expert in experts))


SOME = routing_of({e: 0.5 + e / 10 for e in range(6)})


def call_for(seed=0, weight_on="output"):
    row = np.random.default_rng(seed).standard_normal((1, HIDDEN)).astype(np.float32)
    return Call(7, EPOCH, Task(99, 4, weight_on, row))


@pytest.fixture
def links():
    return made_links()


def made_links():
    return [WireLink(f"w{n}") for n in range(WORKERS)]


def soon():
    return time.monotonic() + 5


def run(links, routing=SOME, call=None, post=None):
    call = call or call_for()
    addressed = (post or LayerPost(EPOCH, OWNER, links)).address(call.task, routing)
    assert addressed is not None
    return exchange_row(call, addressed, HopTimeout(), soon())


def last_frames(links):
    """What was sent last over each link, without the deadline, which was given; None if nothing was."""
    frames = [bytearray(link.sent.pop()) if link.sent else None for link in links]
    for frame in frames:
        if frame is not None:
            assert int.from_bytes(frame[DEADLINE_BYTES], "little") > 0
            frame[DEADLINE_BYTES] = bytes(4)
    return frames


finite = st.floats(-(2.0**100), 2.0**100, width=32)
routings = st.lists(st.dictionaries(st.integers(0, EXPERTS - 1), finite, min_size=1), min_size=1, max_size=4)
owners = st.lists(st.integers(0, WORKERS - 1), min_size=EXPERTS, max_size=EXPERTS)


@given(routings, owners, st.sampled_from(["output", "input"]))
@example([{3: 1.0, 7: float(np.float32(1e-45))}, {3: -0.0, 7: float(np.float32(0.1))}], OWNER.tolist(), "output")
def test_frames_and_results_of_any_row_after_any_other_are_those_of_the_long_way(steps, owner, weight_on):
    owner, links = np.array(owner), made_links()
    post = LayerPost(EPOCH, owner, links)
    for seed, step in enumerate(steps):
        call, routing = call_for(seed, weight_on), routing_of(step)
        found, short = run(links, routing, call, post), last_frames(links)
        plan = plan_dispatch(routing.whole, owner)
        expected, long = exchange(call, plan.messages, links, HopTimeout(), soon()), last_frames(links)

        assert short == long
        assert [part.tobytes() for part in found] == [part.tobytes() for part in expected]


def test_the_weights_of_a_row_are_its_own_though_its_experts_were_asked_before(links):
    post = LayerPost(EPOCH, OWNER, links)
    for weights in ([0.25, 0.75], [0.5, 0.125], [1.0, 1.0]):
        run(links, routing_of({1: weights[0], 4: weights[1]}), post=post)

        assert decode_request(links[1].sent[-1]).weight.tolist() == weights


def test_what_a_post_remembers_does_not_grow_with_the_routings(links):
    post = LayerPost(EPOCH, OWNER, links)
    random = np.random.default_rng(0)
    for _ in range(200):
        experts = random.choice(EXPERTS, 4, replace=False).tolist()
        run(links, routing_of(dict(zip(experts, random.random(4), strict=True))), post=post)

    assert set(post._pieces) <= {1, 2, 3, 4}  # numbers of pairs for one worker


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (Reply.stale(7, [2, 5]), {"status": Status.STALE, "missing": (2, 5), "broken": False}),
        (Reply.error(7, Status.FAILED, "no"), {"status": Status.FAILED, "broken": False}),
        (Reply.of_rows(6, np.zeros((1, HIDDEN), np.float32)), {"status": Status.FAILED, "broken": True}),
        (Reply.of_rows(7, np.zeros((2, HIDDEN), np.float32)), {"status": Status.FAILED, "broken": True}),
        (Reply.of_rows(7, np.zeros((1, HIDDEN), np.float64)), {"status": Status.FAILED, "broken": True}),
        (LinkDown("gone"), {"broken": True, "late": False}),
        (LinkTimeout("slow"), {"broken": True, "late": True}),
        ("refuses", {"broken": True, "late": False}),
    ],
)
def test_one_bad_answer_is_a_failure_that_names_its_pairs_and_the_others_count(links, answer, wanted):
    links[2].answer = answer

    first, second, third = run(links)

    assert isinstance(third, Failure)
    assert {name: getattr(third, name) for name in wanted} == wanted
    failed = third.message.routing(1)
    assert (failed.row.tolist(), failed.expert.tolist()) == ([0, 0], [2, 5])
    np.testing.assert_array_equal(failed.weight, SOME.whole.weight[[2, 5]])
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


def test_a_row_with_experts_in_this_process_goes_the_long_way(links):
    links[1] = LocalLink("w1", IdentityHost())

    assert LayerPost(EPOCH, OWNER, links).address(call_for().task, SOME) is None


def test_a_row_with_an_expert_that_nobody_serves_goes_the_long_way(links):
    owner = np.where(np.arange(EXPERTS) == 4, -1, OWNER)

    assert LayerPost(EPOCH, owner, links).address(call_for().task, SOME) is None


def test_a_row_without_pairs_goes_the_long_way(links):
    assert LayerPost(EPOCH, OWNER, links).address(call_for().task, routing_of({})) is None
