"""What a step gave is made into events, facts and tallies later, beside further steps: nothing is lost or mixed up."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.clock import ManualClock, SystemClock
from expertmesh_common.errors import InvalidInput
from expertmesh_controller.gateway.batching.engine import Engine
from expertmesh_controller.gateway.batching.forward import Forward
from expertmesh_controller.gateway.batching.handing import Parcel, opened
from expertmesh_controller.gateway.batching.jobs import (
    Ended,
    Facts,
    Failed,
    Job,
    Picked,
    Reason,
    Request,
    Scoring,
    Ticket,
)
from expertmesh_controller.gateway.batching.stepping import Stepper
from expertmesh_controller.gateway.batching.tally import Tally
from expertmesh_controller.gateway.trunk.local import LocalTrunk
from models import tiny_bundle as tiny
from models.numpy_plane import HeldPlane, NumpyPlane

PROMPTS, LENGTHS = [[1, 2, 3], list(range(40)), [9]], [4, 6, 2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def trunk(bundle: Bundle) -> LocalTrunk:
    return LocalTrunk(bundle, "fp32", slots=4, context_tokens=64, chunk_tokens=16)


class Bench:
    """A stepper whose parcels lie until `open`; every step takes a second."""

    def __init__(self, bundle: Bundle, trunk: LocalTrunk) -> None:
        self.clock, self.tally, self.parcels = ManualClock(), Tally(), list[Parcel]()
        self.seen: list[tuple[int, object, int]] = []  # key, event, rows in the facts when it came
        self.plane = NumpyPlane(bundle)
        forward = Forward(trunk, self.plane, bundle.manifest.layers, patience_s=10)
        self.stepper = Stepper(trunk, forward, self.clock, self.parcels.append)

    def join(self, key: int, **rest) -> Ticket:
        ticket = Ticket(key, Facts(self.clock.monotonic()))
        self.stepper.join(Job(Request(tuple(PROMPTS[key]), LENGTHS[key], 1e9, **rest), ticket))
        return ticket

    def step(self) -> None:
        self.clock.advance(1)
        self.stepper.step()

    def run(self, *, opening: bool) -> None:
        while self.stepper.roster.busy:
            self.step()
            if opening:
                self.open()

    def open(self) -> None:
        for parcel in self.parcels:
            self.seen += [(t.key, event, t.facts.rows) for t, event in opened(parcel, self.tally)]
        self.parcels.clear()

    def of(self, key: int) -> list:
        return [event for one, event, _ in self.seen if one == key]


@pytest.fixture
def bench(bundle: Bundle, trunk: LocalTrunk) -> Bench:
    return Bench(bundle, trunk)


def test_events_that_are_made_after_all_steps_are_those_of_their_steps_in_order(bench: Bench, bundle: Bundle) -> None:
    for key in range(3):
        bench.join(key)
    bench.run(opening=False)
    bench.open()
    for key, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        *picked, last = bench.of(key)
        assert [event.position for event in picked] == list(range(length))
        assert [event.choice.token_id for event in picked] == tiny.greedy_ids(bundle, prompt, length)
        assert last == Ended(Reason.LENGTH)


def test_shares_and_times_are_the_same_however_late_they_are_looked_at(
    bundle: Bundle, trunk: LocalTrunk, bench: Bench
) -> None:
    late, prompt = [bench.join(key) for key in range(3)], Bench(bundle, trunk)
    soon = [prompt.join(key) for key in range(3)]
    bench.run(opening=False)
    bench.open()
    prompt.run(opening=True)
    assert [ticket.facts for ticket in late] == [ticket.facts for ticket in soon]
    assert bench.tally.totals() == prompt.tally.totals()
    assert len({ticket.facts.active_share for ticket in late}) == 3, "shares that are all alike would show nothing"


def test_the_facts_have_all_rows_of_the_answer_when_an_event_of_it_comes(bench: Bench) -> None:
    for key in range(3):
        bench.join(key)
    bench.run(opening=False)
    bench.open()
    for key, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        rows = [rows for one, _, rows in bench.seen if one == key]
        last = len(prompt) + length - 1  # the last token is never fed
        assert rows == [*range(len(prompt), last + 1), last]


def test_times_of_tokens_are_those_of_their_steps_and_each_is_tallied_once(bench: Bench) -> None:
    ticket = bench.join(0)
    bench.run(opening=False)
    bench.clock.advance(100)
    bench.open()
    facts, totals = ticket.facts, bench.tally.totals()
    assert (facts.admitted, facts.started, facts.first_token, facts.last_token) == (0, 1, 1, 4)
    assert (sum(totals.first_token.counts), totals.first_token.total_s) == (1, 1.0)
    assert (sum(totals.token.counts), totals.token.total_s) == (3, 3.0)


def test_an_answer_that_stops_at_once_has_the_time_of_its_first_step(bench: Bench, bundle: Bundle) -> None:
    (first,) = tiny.greedy_ids(bundle, PROMPTS[0], 1)
    ticket = bench.join(0, eos_ids=frozenset({first}))
    bench.run(opening=True)
    assert bench.of(0) == [Ended(Reason.STOP)]
    assert ticket.facts.first_token == 1
    assert ticket.facts.rows == len(PROMPTS[0])


def test_what_was_chosen_comes_before_the_error_of_a_later_step(bench: Bench, bundle: Bundle) -> None:
    bench.join(0)
    bench.step()
    bench.plane.failures = [InvalidInput("rows do not fit")]
    bench.step()
    bench.open()
    picked, failed = bench.of(0)
    assert isinstance(picked, Picked)
    assert isinstance(failed, Failed)
    assert bench.tally.totals().token.total_s == 0


@pytest.mark.parametrize("lengths", [(5, 4, 50), (5, 4, 50, 50)])
def test_when_a_cache_cannot_move_who_ended_has_ended_and_everyone_else_fails(
    bench: Bench, trunk: LocalTrunk, monkeypatch, lengths
) -> None:
    """The first two end together, and the last cannot take the place of one of them."""
    for key, tokens in enumerate(lengths):
        bench.stepper.join(Job(Request((5,), tokens, 1e9), Ticket(key, Facts(0.0))))

    def broken(source: int, target: int, tokens: int) -> None:
        raise InvalidInput("no such slot")

    while len(bench.stepper.roster.decoding) < len(lengths):
        bench.step()
    monkeypatch.setattr(trunk, "move", broken)
    for _ in range(3):
        bench.step()
    bench.open()
    for key, tokens in enumerate(lengths):
        endings = [type(event) for event in bench.of(key) if not isinstance(event, Picked)]
        assert endings == [Ended if tokens < 50 else Failed]
    assert not bench.stepper.roster.busy


@pytest.fixture
async def held(bundle: Bundle, trunk: LocalTrunk):
    plane = HeldPlane(bundle)
    engine = Engine(trunk, Forward(trunk, plane, bundle.manifest.layers, 10.0), SystemClock(), 4)
    engine.start()
    yield SimpleNamespace(engine=engine, plane=plane)
    plane.let_go.set()
    await engine.stop()


def ask(engine: Engine, tokens: int) -> Ticket:
    return engine.submit(Request((1, 2, 3), tokens, SystemClock().monotonic() + 60))


@pytest.mark.parametrize("tokens", [1, 9], ids=["its last step", "another step"])
async def test_an_answer_that_is_cancelled_during_a_step_tells_nothing_more_and_leaves_once(held, tokens) -> None:
    cancelled, other = ask(held.engine, tokens), ask(held.engine, 12)
    await asyncio.to_thread(held.plane.entered.wait, 10)
    held.engine.cancel(cancelled)
    held.plane.let_go.set()
    events = [await other.events.get() for _ in range(13)]
    assert events[-1] == Ended(Reason.LENGTH)
    assert cancelled.events.empty()
    assert cancelled.facts.ended
    assert held.engine.outstanding == 0


async def test_a_reader_of_the_last_event_finds_the_facts_complete_and_every_token_tallied(held) -> None:
    held.plane.let_go.set()
    tickets = [ask(held.engine, tokens) for tokens in (3, 8)]
    for ticket, tokens in zip(tickets, (3, 8), strict=True):
        while not isinstance(await ticket.events.get(), Ended):
            pass
        facts = ticket.facts
        assert facts.rows == 3 + tokens - 1
        assert facts.admitted < facts.started < facts.first_token < facts.last_token
    totals = held.engine.tally.totals()
    assert (sum(totals.first_token.counts), sum(totals.token.counts)) == (2, 3 + 8 - 2)


async def test_a_scored_text_has_all_its_rows_and_scores_before_its_end(held) -> None:
    held.plane.let_go.set()
    ticket = held.engine.submit(Scoring(tuple(range(40)), 1, SystemClock().monotonic() + 60))
    events = [await ticket.events.get() for _ in range(4)]
    assert [len(event.choices) for event in events[:-1]] == [16, 16, 7]
    assert events[-1] == Ended(Reason.LENGTH)
    assert ticket.facts.rows == 39
    assert ticket.facts.active_share > 0
    assert ticket.facts.first_token is None


async def test_scores_that_wait_are_counted_by_the_thread_of_the_loop(bundle: Bundle, trunk: LocalTrunk) -> None:
    forward, folding = Forward(trunk, NumpyPlane(bundle), bundle.manifest.layers, 10.0), []
    forward.picks = SimpleNamespace(fold=lambda: folding.append(threading.current_thread()))
    engine = Engine(trunk, forward, SystemClock(), 4)
    engine.start()
    ticket = ask(engine, 3)
    while not isinstance(await ticket.events.get(), Ended):
        pass
    await engine.stop()
    assert set(folding) == {threading.current_thread()}
