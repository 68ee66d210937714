"""`score` through a real gateway: the values of the plain reference, refusals that name the field, slots given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from expertmesh import AsyncClient, DeadlineExceeded, InvalidRequest, NotFound
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.security import Security
from expertmesh_common.serving import Serving
from expertmesh_controller.cluster.reports import GatewayReport
from expertmesh_controller.cluster.routes import RouteTable
from expertmesh_controller.gateway.gateway import Gateway
from expertmesh_controller.gateway.settings import GatewaySettings
from expertmesh_forge.reference import ReferenceModel
from models import tiny_bundle as tiny
from models.numpy_plane import NumpyPlane

CONTEXT = 200
IDS = np.random.default_rng(3).integers(0, 256, 90).tolist()


class SilentRoutes:
    """A control loop that says nothing: the plane of these tests needs no workers."""

    async def watch(self) -> AsyncIterator[RouteTable]:
        await asyncio.Event().wait()
        yield RouteTable()

    async def report(self, report: GatewayReport) -> None:
        return None


class House:
    """A served gateway and a client of it."""

    def __init__(self, bundle: Bundle) -> None:
        self.plane = NumpyPlane(bundle)
        settings = GatewaySettings(slots=4, context_tokens=CONTEXT, prefill_chunk_tokens=32)
        self.gateway = Gateway(bundle, "fp32", SilentRoutes(), self.plane, settings)
        self.serving = Serving(Security())

    async def open(self) -> None:
        names = self.gateway.add_to(self.serving.server)
        port = await self.serving.start("127.0.0.1:0", names)
        await self.gateway.start()
        self.client = AsyncClient(f"127.0.0.1:{port}")

    async def close(self) -> None:
        await self.client.close()
        await self.serving.stop(0)
        await self.gateway.stop()

    async def emptied(self) -> None:
        async with asyncio.timeout(10):
            while self.gateway.engine.outstanding:  # noqa: ASYNC110 - seen from outside: nothing signals it
                await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
async def house(bundle: Bundle):
    house = House(bundle)
    await house.open()
    yield house
    await house.close()


@pytest.fixture(scope="module")
def reference(bundle: Bundle) -> np.ndarray:
    """Log probabilities float64 [tokens, vocabulary] of IDS by the plain reference."""
    logits = ReferenceModel(bundle).expect(IDS).logits.astype(np.float64)
    top = logits.max(1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))


async def test_a_score_is_what_the_plain_reference_computes(house: House, reference: np.ndarray) -> None:
    score = await house.client.score(ids=IDS, top_logprobs=3)
    expected = [reference[i, t] for i, t in enumerate(IDS[1:])]
    assert score.ids == tuple(IDS)
    assert score.logprobs[0] is None
    np.testing.assert_allclose(score.logprobs[1:], expected, atol=1e-4)
    assert score.total_logprob == pytest.approx(sum(expected), abs=1e-3)
    assert score.perplexity == pytest.approx(np.exp(-np.mean(expected)), rel=1e-4)
    for token, row in zip(score.tokens[1:], reference, strict=False):
        assert [top.id for top in token.top_logprobs] == np.argsort(-row, kind="stable")[:3].tolist()
    assert (score.precision, score.numerics, score.lossy) == ("fp32", "exact", ())
    assert 1 / 3 < score.active_share < 1
    assert 0 <= score.queue_ms <= score.total_ms


async def test_the_same_question_gives_the_same_answer_beside_others(house: House) -> None:
    alone = await house.client.score(ids=IDS)
    answer = asyncio.create_task(house.client.complete(prompt_ids=[5, 6], max_tokens=60, ignore_eos=True))
    together = await asyncio.gather(*(house.client.score(ids=IDS) for _ in range(6)))
    assert {score.logprobs for score in together} == {alone.logprobs}
    assert len((await answer).tokens) == 60


async def test_a_prompt_is_read_and_not_scored(house: House, reference: np.ndarray) -> None:
    score = await house.client.score(ids=IDS[40:], prompt_ids=IDS[:40])
    assert score.prompt_tokens == 40
    np.testing.assert_allclose(score.logprobs, [reference[i, IDS[i + 1]] for i in range(39, 89)], atol=1e-4)


async def test_prompt_and_text_are_tokenised_apart(house: House) -> None:
    score = await house.client.score("the rain", prompt="oh ")
    prompt, text = [(await house.client.tokenize(part)) for part in ("oh ", "the rain")]
    assert (score.ids, score.pieces) == (text.ids, text.pieces)
    assert score.prompt_tokens == len(prompt.ids)
    assert None not in score.logprobs
    by_ids = await house.client.score(ids=text.ids, prompt_ids=prompt.ids)
    assert by_ids.tokens == score.tokens


async def test_generated_tokens_score_as_they_were_generated(house: House) -> None:
    answer = await house.client.complete(prompt_ids=[9, 8, 7], max_tokens=20, ignore_eos=True, logprobs=True)
    score = await house.client.score(ids=answer.token_ids, prompt_ids=[9, 8, 7])
    np.testing.assert_allclose(score.logprobs, [token.logprob for token in answer.tokens], atol=1e-4)


async def test_one_token_with_nothing_before_it_has_no_log_probability(house: House) -> None:
    score = await house.client.score(ids=[7])
    assert (score.logprobs, score.total_logprob) == ((None,), 0.0)
    assert np.isnan(score.perplexity)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": ""}, "text has no tokens"),
        ({"ids": []}, "ids.ids has no tokens"),
        ({"ids": [1, 300]}, r"ids.ids\[1\] is 300"),
        ({"ids": [1], "prompt_ids": [900]}, r"prompt_ids.ids\[0\] is 900"),
        ({"ids": [1] * 120, "prompt_ids": [2] * 81}, "have 201 tokens: this gateway's context is 200"),
        ({"text": "x" * 50_000}, "text has 50000 characters"),
        ({"text": "a", "prompt": "x" * 50_000}, "prompt has 50000 characters"),
        ({"ids": [1, 2], "top_logprobs": 21}, "top_logprobs is 21: allowed are 0 to 20"),
    ],
)
async def test_wrong_requests_name_the_field(house: House, arguments, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        await house.client.score(**arguments)


async def test_another_model_is_not_here(house: House) -> None:
    with pytest.raises(NotFound, match="other"):
        await house.client.score("a", model="other")


async def test_whoever_does_not_wait_for_a_score_gives_its_slot_back(house: House) -> None:
    house.plane.delay_s = 0.02
    asking = asyncio.create_task(house.client.score(ids=IDS))
    async with asyncio.timeout(10):
        while not house.plane.calls:  # noqa: ASYNC110 - seen from outside: nothing signals it
            await asyncio.sleep(0.005)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await house.emptied()
    with pytest.raises(DeadlineExceeded):
        await house.client.score(ids=IDS, deadline_s=0.05)
    await house.emptied()


async def test_the_longest_text_that_fits_is_scored(house: House) -> None:
    score = await house.client.score(ids=[n % 256 for n in range(CONTEXT)])
    assert len(score.tokens) == CONTEXT
