"""Scoring texts in the batch: the same numbers as a plain forward pass, alone or beside running answers."""

from __future__ import annotations

import numpy as np
import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.clock import ManualClock
from expertmesh_common.errors import CorruptData, DeadlinePassed, Unavailable
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
    Scored,
    Scoring,
    Ticket,
)
from expertmesh_controller.gateway.batching.scoring import ScoringJob
from expertmesh_controller.gateway.batching.stepping import Stepper
from expertmesh_controller.gateway.batching.tally import Tally
from expertmesh_controller.gateway.trunk.local import LocalTrunk
from models import tiny_bundle as tiny
from models.numpy_plane import NumpyPlane

SLOTS, CHUNK = 3, 32
TEXT = np.random.default_rng(11).integers(0, 256, 101).tolist()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def trunk(bundle: Bundle) -> LocalTrunk:
    return LocalTrunk(bundle, "fp32", slots=SLOTS, context_tokens=256, chunk_tokens=CHUNK)


class Bench:
    """A stepper that is stepped by hand."""

    def __init__(self, bundle: Bundle, trunk: LocalTrunk) -> None:
        self.plane, self.clock = NumpyPlane(bundle), ManualClock()
        self.events: dict[int, list] = {}
        forward = Forward(trunk, self.plane, bundle.manifest.layers, patience_s=10)
        self.stepper = Stepper(trunk, forward, self.clock, self._post)

    def _post(self, parcel: Parcel) -> None:
        for ticket, event in opened(parcel, Tally()):
            self.events[ticket.key].append(event)

    def ticket(self) -> Ticket:
        ticket = Ticket(len(self.events), Facts(self.clock.monotonic()))
        self.events[ticket.key] = []
        return ticket

    def score(self, ids: list[int], first: int = 1, deadline: float = 1e9, top_logprobs: int = 0) -> Ticket:
        job = ScoringJob(Scoring(tuple(ids), first, deadline, top_logprobs), self.ticket())
        self.stepper.join(job)
        return job.ticket

    def generate(self, prompt: list[int], max_tokens: int) -> Ticket:
        job = Job(Request(tuple(prompt), max_tokens, 1e9), self.ticket())
        self.stepper.join(job)
        return job.ticket

    def run(self, steps: int = 1000) -> None:
        for _ in range(steps):
            if not self.stepper.roster.busy:
                return
            self.stepper.step()

    def choices(self, ticket: Ticket) -> list:
        return [c for e in self.events[ticket.key] if isinstance(e, Scored) for c in e.choices]

    def logprobs(self, ticket: Ticket) -> list[float]:
        return [choice.logprob for choice in self.choices(ticket)]


@pytest.fixture
def bench(bundle: Bundle, trunk: LocalTrunk) -> Bench:
    return Bench(bundle, trunk)


def expected(bundle: Bundle, ids: list[int]) -> np.ndarray:
    """Log probabilities float64 [tokens, vocabulary] by a dense numpy pass."""
    logits = tiny.dense_logits(bundle, ids).astype(np.float64)
    return (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )


def test_every_token_after_the_first_has_the_log_probability_of_a_dense_pass(bench: Bench, bundle: Bundle) -> None:
    ticket = bench.score(TEXT)
    bench.run()
    table = expected(bundle, TEXT)
    assert [c.token_id for c in bench.choices(ticket)] == TEXT[1:]
    np.testing.assert_allclose(bench.logprobs(ticket), [table[i, t] for i, t in enumerate(TEXT[1:])], atol=1e-4)
    assert bench.events[ticket.key][-1] == Ended(Reason.LENGTH)
    assert [len(e.choices) for e in bench.events[ticket.key][:-1]] == [32, 32, 32, 4]
    assert ticket.facts.rows == 100  # nothing follows the last token, so it is never read in


@pytest.mark.parametrize("first", [2, 32, 33, 34, 70, 100])
def test_what_stands_before_is_read_and_not_scored(bench: Bench, bundle: Bundle, first: int) -> None:
    ticket = bench.score(TEXT, first)
    bench.run()
    table = expected(bundle, TEXT)
    wanted = [table[i - 1, TEXT[i]] for i in range(first, len(TEXT))]
    np.testing.assert_allclose(bench.logprobs(ticket), wanted, atol=1e-4)


def test_alternatives_are_the_most_likely_tokens_at_each_place(bench: Bench, bundle: Bundle) -> None:
    ticket = bench.score(TEXT[:20], top_logprobs=3)
    bench.run()
    for row, choice in zip(expected(bundle, TEXT[:20]), bench.choices(ticket), strict=False):
        best = np.argsort(-row, kind="stable")[:3]
        assert [i for i, _ in choice.top_logprobs] == best.tolist()
        np.testing.assert_allclose([p for _, p in choice.top_logprobs], row[best], atol=1e-4)


def test_a_text_scores_the_same_beside_answers_which_get_the_tokens_they_get_alone(bench: Bench, bundle: Bundle):
    alone = bench.score(TEXT)
    bench.run()
    answers = [bench.generate(TEXT[:5], 40), bench.generate(TEXT[5:45], 40)]
    bench.run(3)
    beside = bench.score(TEXT)
    bench.run()
    assert bench.logprobs(beside) == bench.logprobs(alone)
    for answer, prompt in zip(answers, (TEXT[:5], TEXT[5:45]), strict=True):
        ids = [e.choice.token_id for e in bench.events[answer.key] if isinstance(e, Picked)]
        assert ids == tiny.greedy_ids(bundle, prompt, 40)


def test_a_running_answer_gets_a_token_in_every_step_of_a_scored_text(bench: Bench) -> None:
    answer = bench.generate(TEXT[:3], 60)
    bench.run(2)
    bench.score(TEXT)
    before = len(bench.events[answer.key])
    bench.run(4)
    assert len(bench.events[answer.key]) == before + 4


def test_scored_texts_take_turns_and_leave_their_slots(bench: Bench, bundle: Bundle) -> None:
    tickets = [bench.score(TEXT[n:]) for n in range(7)]
    bench.run()
    for n, ticket in enumerate(tickets):
        assert len(bench.logprobs(ticket)) == 100 - n
    assert bench.stepper.roster.everyone == ()


def test_experts_that_come_back_change_no_value(bench: Bench) -> None:
    undisturbed = bench.score(TEXT)
    bench.run()
    bench.plane.failures, bench.plane.fail_at_layer = [Unavailable("lost")] * 2, 1
    disturbed = bench.score(TEXT)
    bench.run()
    assert bench.logprobs(disturbed) == bench.logprobs(undisturbed)


def test_a_cancelled_text_is_left_at_the_next_chunk(bench: Bench) -> None:
    ticket = bench.score(TEXT)
    bench.run(2)
    bench.stepper.cancel(ticket.key)
    assert bench.stepper.roster.everyone == ()
    assert len(bench.logprobs(ticket)) == 64


def test_a_deadline_says_how_far_a_text_has_come(bench: Bench) -> None:
    ticket = bench.score(TEXT, deadline=5)
    bench.run(1)
    bench.clock.advance(6)
    bench.run(1)
    (failed,) = [e for e in bench.events[ticket.key] if isinstance(e, Failed)]
    assert isinstance(failed.error, DeadlinePassed)
    assert "after 32 of 100 scored tokens" in str(failed.error)


def test_values_that_are_no_numbers_fail_the_text_and_nobody_else(bench: Bench, bundle: Bundle, trunk) -> None:
    answer = bench.generate(TEXT[:3], 12)
    bench.run(1)
    ticket = bench.score(TEXT)
    sound = bench.plane.run

    def poisoned(layer, rows, *rest):
        out = sound(layer, rows, *rest)
        out[20:] = np.nan  # only the chunk has so many rows
        return out

    bench.plane.run = poisoned
    bench.run()
    (failed,) = bench.events[ticket.key]
    assert isinstance(failed.error, CorruptData)
    ids = [e.choice.token_id for e in bench.events[answer.key] if isinstance(e, Picked)]
    assert ids == tiny.greedy_ids(bundle, TEXT[:3], 12)


def test_the_head_runs_over_a_few_rows_at_a_time(bench: Bench, trunk: LocalTrunk, monkeypatch) -> None:
    asked: list[int] = []
    whole = LocalTrunk.chunk_logits

    def counted(self, first, count):
        asked.append(count)
        return whole(self, first, count)

    monkeypatch.setattr(LocalTrunk, "chunk_logits", counted)
    bench.score(TEXT)
    bench.run()
    assert sum(asked) == 100
    assert max(asked) == trunk.limits.head_rows == SLOTS + 1
