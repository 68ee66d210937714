"""Continuous batching over a tiny model: everyone gets the tokens they would get alone, whatever happens to others."""

from collections.abc import Callable

import numpy as np
import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.clock import ManualClock, SystemClock
from expertmesh_common.errors import CorruptData, DeadlinePassed, Exhausted, InvalidInput, Unavailable
from expertmesh_controller.gateway.batching.engine import Engine
from expertmesh_controller.gateway.batching.forward import Forward
from expertmesh_controller.gateway.batching.handing import Parcel, opened
from expertmesh_controller.gateway.batching.jobs import Ended, Facts, Failed, Job, Picked, Reason, Request, Ticket
from expertmesh_controller.gateway.batching.stepping import Stepper
from expertmesh_controller.gateway.batching.tally import Tally
from expertmesh_controller.gateway.sampling.options import SamplingOptions
from expertmesh_controller.gateway.trunk.local import LocalTrunk
from models import tiny_bundle as tiny
from models.numpy_plane import NumpyPlane

SLOTS, CONTEXT, CHUNK = 4, 256, 32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def trunk(bundle: Bundle) -> LocalTrunk:
    return LocalTrunk(bundle, "fp32", slots=SLOTS, context_tokens=CONTEXT, chunk_tokens=CHUNK)


class Bench:
    """A stepper that is stepped by hand, with a clock that is moved by hand."""

    def __init__(self, bundle: Bundle, trunk: LocalTrunk) -> None:
        self.plane, self.clock, self.tally = NumpyPlane(bundle), ManualClock(), Tally()
        self.events: dict[int, list] = {}
        forward = Forward(trunk, self.plane, bundle.manifest.layers, patience_s=10)
        self.stepper = Stepper(trunk, forward, self.clock, self._post)
        self.log: list[tuple[int, object]] = []

    def _post(self, parcel: Parcel) -> None:
        for ticket, event in opened(parcel, self.tally):
            self.events[ticket.key].append(event)
            self.log.append((ticket.key, event))

    def join(self, prompt: list[int], max_tokens: int, **rest) -> Ticket:
        ticket = Ticket(len(self.events), Facts(self.clock.monotonic()))
        self.events[ticket.key] = []
        fields = {"deadline": 1e9} | rest
        self.stepper.join(Job(Request(tuple(prompt), max_tokens, **fields), ticket))
        return ticket

    def run(self, until: Callable[[], bool] | None = None, limit: int = 2000) -> None:
        for _ in range(limit):
            if not self.stepper.roster.busy or (until is not None and until()):
                return
            self.stepper.step()
        raise AssertionError("not done after many steps")

    def ids(self, ticket: Ticket) -> list[int]:
        return [e.choice.token_id for e in self.events[ticket.key] if isinstance(e, Picked)]

    def last(self, ticket: Ticket):
        return self.events[ticket.key][-1]


@pytest.fixture
def bench(bundle: Bundle, trunk: LocalTrunk) -> Bench:
    return Bench(bundle, trunk)


def prompts() -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(0, 256, n).tolist() for n in (3, 90, 1, 40, 33, 64, 7, 120)]


def test_eight_unequal_requests_get_the_tokens_they_would_get_alone(bench: Bench, bundle: Bundle) -> None:
    lengths = [20, 5, 12, 1, 30, 9, 17, 25]
    tickets = [bench.join(prompt, n) for prompt, n in zip(prompts(), lengths, strict=True)]
    bench.run()
    for ticket, prompt, n in zip(tickets, prompts(), lengths, strict=True):
        assert bench.ids(ticket) == tiny.greedy_ids(bundle, prompt, n)
        assert bench.last(ticket) == Ended(Reason.LENGTH)


def test_sampled_requests_do_not_depend_on_their_neighbours(bench: Bench) -> None:
    options = [SamplingOptions(temperature=1.5, top_p=0.9, seed=s, repetition_penalty=1.1) for s in range(8)]
    alone = []
    for prompt, sampling in zip(prompts(), options, strict=True):
        ticket = bench.join(prompt, 10, sampling=sampling)
        bench.run()
        alone.append(bench.ids(ticket))
    tickets = [bench.join(prompt, 10, sampling=s) for prompt, s in zip(prompts(), options, strict=True)]
    bench.run()
    assert [bench.ids(t) for t in tickets] == alone


def test_a_late_joiner_starts_before_an_early_one_is_done(bench: Bench) -> None:
    early = bench.join([1, 2, 3], 40)
    bench.run(until=lambda: len(bench.ids(early)) == 5)
    late = bench.join([4, 5], 3)
    bench.run()
    order = [key for key, _ in bench.log]
    assert order.index(late.key) < len(order) - 1 - order[::-1].index(early.key)
    assert bench.last(late) == Ended(Reason.LENGTH)


def test_a_short_prompt_is_not_stuck_behind_a_long_one_nor_does_it_stop_those_who_decode(bench: Bench) -> None:
    decoding = bench.join([9], 100)
    bench.run(until=lambda: len(bench.ids(decoding)) == 1)
    long = bench.join(list(range(200)), 2)
    bench.stepper.step()
    short = bench.join([7, 8, 9], 2)
    bench.run(until=lambda: bool(bench.ids(short)))
    assert not bench.ids(long)
    assert len(bench.ids(decoding)) == 3  # a token in every step
    assert max(rows for _, rows in bench.plane.calls) <= CHUNK + SLOTS
    bench.run()
    assert len(bench.ids(long)) == 2


def test_the_end_of_sequence_token_ends_an_answer_and_is_no_part_of_it(bench: Bench, bundle: Bundle) -> None:
    expected = tiny.greedy_ids(bundle, [5, 6, 7], 12)
    eos = frozenset({expected[4]})
    stopped = bench.join([5, 6, 7], 12, eos_ids=eos)
    ignored = bench.join([5, 6, 7], 12, eos_ids=eos, sampling=SamplingOptions(ignore_eos=True))
    bench.run()
    assert bench.ids(stopped) == expected[: expected.index(expected[4])]
    assert bench.last(stopped) == Ended(Reason.STOP)
    assert bench.ids(ignored) == expected


@pytest.mark.parametrize("sampling", [SamplingOptions(), SamplingOptions(temperature=1.0, seed=3)])
def test_a_resumed_answer_equals_the_uninterrupted_one(bench: Bench, sampling: SamplingOptions) -> None:
    whole = bench.join([10, 20, 30], 16, sampling=sampling)
    bench.run()
    for cut in (1, 7, 15):
        rest = bench.join([10, 20, 30], 16, sampling=sampling, resumed_ids=tuple(bench.ids(whole)[:cut]))
        bench.run()
        assert bench.ids(rest) == bench.ids(whole)[cut:]
        assert [e.position for e in bench.events[rest.key][:-1]] == list(range(cut, 16))


def test_cancelling_frees_the_slot_for_those_who_wait(bench: Bench, bundle: Bundle) -> None:
    tickets = [bench.join([n], 50) for n in range(SLOTS + 1)]
    bench.run(until=lambda: len(bench.ids(tickets[3])) == 3)
    assert [s.key for s in bench.stepper.roster.waiting] == [tickets[4].key]
    bench.stepper.cancel(tickets[0].key)
    bench.stepper.step()
    assert bench.ids(tickets[4])
    assert bench.last(tickets[0]) is None
    bench.run()
    assert bench.ids(tickets[4]) == tiny.greedy_ids(bundle, [4], 50)
    assert bench.ids(tickets[3]) == tiny.greedy_ids(bundle, [3], 50)


def test_cancelling_a_prompt_in_the_middle_leaves_the_others_alone(bench: Bench, bundle: Bundle) -> None:
    long, other = bench.join(list(range(200)), 5), bench.join(list(range(100)), 5)
    bench.stepper.step()
    bench.stepper.cancel(long.key)
    bench.run()
    assert bench.ids(other) == tiny.greedy_ids(bundle, list(range(100)), 5)


@pytest.mark.parametrize("layer", range(tiny.LAYERS))
@pytest.mark.parametrize("error", [Unavailable("no worker"), DeadlinePassed("slow worker")])
def test_a_step_that_lost_its_experts_is_repeated_without_a_trace(
    bench: Bench, bundle: Bundle, layer: int, error: Exception
) -> None:
    bench.plane.fail_at_layer = layer
    tickets = [bench.join(prompt, 6) for prompt in prompts()[:5]]
    for failures in range(12):
        if failures % 3 == 0:
            bench.plane.failures = [error, error]
        bench.stepper.step()
    bench.run()
    for ticket, prompt in zip(tickets, prompts(), strict=False):
        assert bench.ids(ticket) == tiny.greedy_ids(bundle, prompt, 6)


def test_only_those_whose_deadline_is_over_fail_when_experts_are_missing(bench: Bench, bundle: Bundle) -> None:
    hurried, patient = bench.join([1], 50, deadline=5.0), bench.join([2], 8)
    bench.run(until=lambda: len(bench.ids(patient)) == 2)
    bench.plane.failures = [Unavailable("expert 3 of layer 1 has no instance")]
    plane_run = bench.plane.run

    def late(layer: int, rows, deadline: float, patience_s: float):
        assert deadline == 5.0
        bench.clock.advance(5)
        bench.plane.run = plane_run
        return plane_run(layer, rows, deadline)

    bench.plane.run = late
    bench.run()
    failure = bench.last(hurried)
    assert isinstance(failure, Failed)
    assert isinstance(failure.error, Unavailable)
    assert "expert 3 of layer 1" in str(failure.error)
    assert bench.ids(patient) == tiny.greedy_ids(bundle, [2], 8)


def test_patience_bounds_the_wait_for_lost_experts_and_not_the_time_of_slow_ones(bench: Bench) -> None:
    asked: list[tuple[float, float]] = []
    plane_run = bench.plane.run

    def run(layer: int, rows, deadline: float, patience_s: float):
        asked.append((deadline, patience_s))
        return plane_run(layer, rows, deadline)

    bench.plane.run = run
    bench.join([1], 1, deadline=50.0)
    bench.clock.advance(3)
    bench.run()
    assert asked == [(50.0, 10)] * tiny.LAYERS


def test_a_deadline_passes_for_the_running_and_for_the_waiting(bench: Bench) -> None:
    running = [bench.join([n], 250, deadline=3.0 + n) for n in range(SLOTS)]
    waiting = bench.join([9], 5, deadline=2.0)
    bench.run(until=lambda: bool(bench.ids(running[-1])))
    bench.clock.advance(3.5)
    bench.stepper.step()
    for ticket in (running[0], waiting):
        error = bench.last(ticket).error
        assert isinstance(error, DeadlinePassed)
    assert "after 0 of at most 5 tokens" in str(bench.last(waiting).error)
    assert isinstance(bench.last(running[1]), Picked)


def test_an_unforeseen_error_fails_the_step_and_not_the_engine(bench: Bench, bundle: Bundle) -> None:
    bench.plane.failures = [InvalidInput("rows do not fit")]
    broken = bench.join([1, 2], 3)
    bench.run()
    assert str(bench.last(broken).error) == "rows do not fit"
    whole = bench.join([1, 2], 3)
    bench.run()
    assert bench.ids(whole) == tiny.greedy_ids(bundle, [1, 2], 3)


@pytest.mark.parametrize(
    "sampling", [SamplingOptions(), SamplingOptions(temperature=1, top_k=5)], ids=["greedy", "top_k"]
)
def test_values_that_are_not_numbers_fail_their_own_request_only(bench: Bench, bundle: Bundle, sampling) -> None:
    first, second = bench.join([1], 10, sampling=sampling), bench.join([2], 10)
    bench.run(until=lambda: len(bench.ids(second)) == 2)
    plane_run = bench.plane.run

    def poison(layer: int, rows, deadline: float, patience_s: float):
        combined = plane_run(layer, rows, deadline)
        combined[0] = np.nan
        bench.plane.run = plane_run
        return combined

    bench.plane.run = poison
    bench.run()
    assert isinstance(bench.last(first).error, CorruptData)
    assert bench.ids(second) == tiny.greedy_ids(bundle, [2], 10)


def test_facts_are_measured_per_request(bench: Bench, bundle: Bundle) -> None:
    ticket = bench.join(list(range(40)), 3)
    bench.clock.advance(1)
    bench.stepper.step()
    bench.clock.advance(2)
    bench.run()
    facts = ticket.facts
    assert (facts.admitted, facts.started, facts.first_token) == (0, 1, 3)
    assert facts.rows == 42
    widest = bundle.manifest.layers[0].total_width
    assert tiny.SHARED_WIDTH / widest < facts.active_share < 1
    assert sum(bench.tally.take()[1]) == 2


async def test_the_front_gets_its_events_in_order_and_the_thread_ends(bundle: Bundle, trunk: LocalTrunk) -> None:
    engine, _ = make_engine(bundle, trunk)
    engine.start()
    ticket = engine.submit(Request((5, 6), 9, SystemClock().monotonic() + 60))
    events = [await ticket.events.get() for _ in range(10)]
    assert [e.choice.token_id for e in events[:-1]] == tiny.greedy_ids(bundle, [5, 6], 9)
    assert events[-1] == Ended(Reason.LENGTH)
    assert engine.outstanding == 0
    await engine.stop()
    with pytest.raises(Unavailable, match="shutting down"):
        engine.submit(Request((5,), 9, 1e9))


async def test_a_full_queue_refuses_and_a_cancellation_makes_room(bundle: Bundle, trunk: LocalTrunk) -> None:
    engine, plane = make_engine(bundle, trunk, queue_limit=1)
    plane.delay_s = 0.002
    engine.start()
    deadline = SystemClock().monotonic() + 60
    tickets = [engine.submit(Request((n,), 240, deadline)) for n in range(SLOTS + 1)]
    with pytest.raises(Exhausted, match="4 requests are running and 1 waiting"):
        engine.submit(Request((9,), 1, deadline))
    engine.cancel(tickets[0])
    await tickets[SLOTS].events.get()  # it has the slot now
    engine.submit(Request((9,), 1, deadline))
    await engine.stop()


async def test_stopping_fails_whoever_is_not_answered(bundle: Bundle, trunk: LocalTrunk) -> None:
    engine, plane = make_engine(bundle, trunk)
    plane.delay_s = 0.002
    engine.start()
    ticket = engine.submit(Request((1,), 240, SystemClock().monotonic() + 60))
    await ticket.events.get()
    await engine.stop()
    while not isinstance(event := await ticket.events.get(), Failed):
        pass
    assert isinstance(event.error, Unavailable)


async def test_missing_experts_are_tried_again_until_they_are_there(bundle: Bundle, trunk: LocalTrunk) -> None:
    engine, plane = make_engine(bundle, trunk)
    plane.failures = [Unavailable("not yet")] * 3
    engine.start()
    ticket = engine.submit(Request((1, 2), 2, SystemClock().monotonic() + 60))
    events = [await ticket.events.get() for _ in range(3)]
    assert [e.choice.token_id for e in events[:2]] == tiny.greedy_ids(bundle, [1, 2], 2)
    await engine.stop()


def make_engine(bundle: Bundle, trunk: LocalTrunk, queue_limit: int = 8) -> tuple[Engine, NumpyPlane]:
    plane, clock = NumpyPlane(bundle), SystemClock()
    return Engine(trunk, Forward(trunk, plane, bundle.manifest.layers, 10), clock, queue_limit), plane
