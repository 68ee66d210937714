"""A whole small mesh: a controller and two workers, neither of which has room for every expert."""

from pathlib import Path

import numpy as np
import pytest

from expertmesh import AsyncClient
from expertmesh.types import ScoredToken, Token
from models import hf_checkpoints as hf
from models.small_mesh import small_mesh
from parity.agreement import STEPS, TOLERANCE
from parity.conftest import IDS
from parity.variants import VARIANTS

SHARE = 0.7  # of all experts: what one worker has room for
TOP = 20
ONE_EXPERT = "llama 4 with one expert per token"
MODELS = {family: (family, {}) for family in hf.FAMILIES} | {ONE_EXPERT: VARIANTS[ONE_EXPERT]}


@pytest.mark.parametrize("name", MODELS)
async def test_two_workers_answer_with_the_tokens_and_probabilities_of_transformers(
    name: str, checkpoint, imported, tmp_path_factory
) -> None:
    family, changes = MODELS[name]
    folder = checkpoint(family, **changes)
    bundle = imported(folder)
    experts = sum(len(layer.experts) for layer in bundle.manifest.layers)
    budget = int(SHARE * bundle.manifest.expert_bytes("fp32"))
    models, sockets = [str(bundle.folder)], tmp_path_factory.mktemp("m")

    async with small_mesh(sockets, models, budget_bytes=budget, context_tokens=96) as client:
        answer = await client.complete(prompt_ids=IDS, max_tokens=STEPS, ignore_eos=True, top_logprobs=TOP)
        score = await client.score(ids=IDS, top_logprobs=TOP)
        held = await experts_per_worker(client)

    assert [token.id for token in answer.tokens] == hf.reference_greedy(folder, IDS, STEPS)
    want, bound = log_probabilities(folder, [*IDS, *answer.token_ids])
    assert_equal_probabilities([*score.tokens[1:], *answer.tokens], want, bound)
    assert max(held) < experts <= sum(held)


def log_probabilities(folder: Path, ids: list[int]) -> tuple[np.ndarray, float]:
    """(of every token that may follow each but the last, float64 [tokens - 1, vocabulary]; how near the mesh must be).

    Logits may differ by d = 1e-5 of the largest. A log probability is a logit less the logsumexp of its row, which
    moves by at most d when no logit moves by more: together 2 d.
    """
    logits = hf.reference_logits(folder, ids)[:-1].astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True)), 2 * TOLERANCE * float(np.abs(logits).max())


def assert_equal_probabilities(got: list[Token | ScoredToken], want: np.ndarray, bound: float) -> None:
    """Of every token itself, and of the most likely ones at its place, which are the largest that there are."""
    near = {"rtol": 0, "atol": bound}
    assert len(got) == len(want)
    places = range(len(got))
    np.testing.assert_allclose([token.logprob for token in got], [want[at, got[at].id] for at in places], **near)
    tops = np.array([[top.logprob for top in token.top_logprobs] for token in got])
    listed = [[want[at, top.id] for top in got[at].top_logprobs] for at in places]
    np.testing.assert_allclose(tops, listed, **near)
    np.testing.assert_allclose(tops, -np.sort(-want, axis=1)[:, :TOP], **near)


async def experts_per_worker(client: AsyncClient) -> list[int]:
    placements = await client.experts()
    return [sum(f"w{number}" in placement.worker_ids for placement in placements) for number in range(2)]
