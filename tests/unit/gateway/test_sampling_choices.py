"""The sampler as a pure function."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmesh_controller.gateway.sampling.choosing import Draw, choose, likeliest, uniform, unusable
from expertmesh_controller.gateway.sampling.options import GREEDY, SamplingOptions

VOCABULARY = 1500
NOTHING = np.empty(0, np.int64)
LOGITS = np.random.default_rng(3).normal(0, 3, VOCABULARY).astype(np.float32)
ORDER = np.argsort(-LOGITS)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def ids(options: SamplingOptions, count: int, logits: np.ndarray = LOGITS, previous: np.ndarray = NOTHING) -> list[int]:
    return [choose(logits[None], [Draw(options, position, previous)])[0].token_id for position in range(count)]


def test_greedy_takes_the_largest_and_of_equals_the_first() -> None:
    logits = np.array([[0, 5, 5, 1], [9, 0, 0, 9]], np.float32)
    assert [c.token_id for c in choose(logits, [Draw(GREEDY, 0, NOTHING)] * 2)] == [1, 0]


def test_frequencies_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    counts = np.bincount(ids(SamplingOptions(temperature=1.0, seed=11), 4000, logits), minlength=4) / 4000
    assert np.abs(counts - [0.5, 0.3, 0.15, 0.05]).max() < 0.03


def test_temperature_sharpens() -> None:
    cold = ids(SamplingOptions(temperature=0.2), 300)
    hot = ids(SamplingOptions(temperature=3.0), 300)
    assert len(set(cold)) < len(set(hot))


@pytest.mark.parametrize("k", [1, 5, 700])
def test_top_k_draws_from_the_k_best_only(k: int) -> None:
    assert set(ids(SamplingOptions(temperature=5.0, top_k=k), 300)) <= set(ORDER[:k].tolist())


@pytest.mark.parametrize("p", [0.1, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_top_p_draws_from_the_smallest_sufficient_set(p: float, temperature: float) -> None:
    sizes = np.cumsum(softmax(LOGITS / temperature)[ORDER])
    nucleus = ORDER[: int(np.searchsorted(sizes, p)) + 1]
    drawn = set(ids(SamplingOptions(temperature=temperature, top_p=p), 300))
    assert drawn <= set(nucleus.tolist())


def test_min_p_leaves_out_what_is_much_less_likely_than_the_best() -> None:
    probabilities = softmax(LOGITS / 2)
    allowed = set(np.flatnonzero(probabilities >= 0.2 * probabilities.max()).tolist())
    assert set(ids(SamplingOptions(temperature=2.0, min_p=0.2), 300)) <= allowed


def test_a_repetition_penalty_lowers_what_was_there_before() -> None:
    best, second = ORDER[:2]
    options = SamplingOptions(repetition_penalty=9.0)
    assert ids(options, 1, previous=np.array([best, best])) == [second]


def test_a_repetition_penalty_lowers_negative_logits_too() -> None:
    logits = np.array([-1.0, -1.5, -9.0], np.float32)
    assert ids(SamplingOptions(repetition_penalty=2.0), 1, logits, np.array([0])) == [1]


def test_logits_are_left_as_they_are() -> None:
    logits = LOGITS[None].copy()
    options = SamplingOptions(temperature=1.0, top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=2.0, logprobs=True)
    choose(logits, [Draw(options, 0, np.array([1, 2]))])
    np.testing.assert_array_equal(logits[0], LOGITS)


def test_log_probabilities_are_the_models_own() -> None:
    options = SamplingOptions(temperature=3.0, top_k=2, logprobs=True, top_logprobs=4)
    (choice,) = choose(LOGITS[None], [Draw(options, 0, NOTHING)])
    expected = np.log(softmax(LOGITS))
    assert choice.logprob == pytest.approx(expected[choice.token_id])
    assert [i for i, _ in choice.top_logprobs] == ORDER[:4].tolist()
    assert [p for _, p in choice.top_logprobs] == pytest.approx(expected[ORDER[:4]].tolist())


def test_the_same_seed_and_position_give_the_same_token_in_any_company() -> None:
    options = SamplingOptions(temperature=1.0, seed=2**64 - 1)
    alone = choose(LOGITS[None], [Draw(options, 7, NOTHING)])
    others = [Draw(SamplingOptions(temperature=1.0, seed=s), s, NOTHING) for s in range(3)]
    together = choose(np.tile(LOGITS, (4, 1)), [*others, Draw(options, 7, NOTHING)])
    assert together[-1] == alone[0]


def test_seeds_and_positions_matter() -> None:
    assert len({uniform(seed, position) for seed in range(20) for position in range(20)}) == 400


@settings(max_examples=60)
@given(
    st.integers(0, 2**64 - 1), st.integers(0, 5000), st.floats(0.01, 10), st.floats(0.01, 1), st.integers(0, VOCABULARY)
)
def test_any_options_choose_a_token_that_exists(seed: int, position: int, temperature: float, p: float, k: int) -> None:
    options = SamplingOptions(temperature=temperature, top_p=p, top_k=k, seed=seed)
    (choice,) = choose(LOGITS[None], [Draw(options, position, NOTHING)])
    assert 0 <= choice.token_id < VOCABULARY


def test_rows_that_are_not_numbers_are_found() -> None:
    logits = np.zeros((4, 5), np.float32)
    logits[1, 2], logits[2, 3], logits[3, 1] = np.nan, np.inf, -np.inf
    assert unusable(logits, likeliest(logits)) == [False, True, True, False]
