"""A whole small mesh: a controller and two workers, neither of which has room for every expert."""

from pathlib import Path

import numpy as np
import pytest

from expertmesh import AsyncClient
from models import hf_checkpoints as hf
from models.small_mesh import small_mesh
from parity.conftest import IDS

SHARE = 0.7  # of all experts: what one worker has room for


def log_probabilities(folder: Path, ids: list[int]) -> list[float]:
    """Of every token but the first, by transformers."""
    logits = hf.reference_logits(folder, ids).astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    sure = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return [float(sure[at, token]) for at, token in enumerate(ids[1:])]


async def experts_per_worker(client: AsyncClient) -> list[int]:
    placements = await client.experts()
    return [sum(f"w{number}" in placement.worker_ids for placement in placements) for number in range(2)]


@pytest.mark.parametrize("family", hf.FAMILIES)
async def test_two_workers_answer_with_the_tokens_of_transformers(
    family: str, checkpoint, imported, tmp_path_factory
) -> None:
    folder = checkpoint(family)
    bundle = imported(folder)
    experts = sum(len(layer.experts) for layer in bundle.manifest.layers)
    budget = int(SHARE * bundle.manifest.expert_bytes("fp32"))
    models, sockets = [str(bundle.folder)], tmp_path_factory.mktemp("m")

    async with small_mesh(sockets, models, budget_bytes=budget, context_tokens=96) as client:
        answer = await client.complete(prompt_ids=IDS, max_tokens=16, ignore_eos=True)
        score = await client.score(ids=IDS)
        held = await experts_per_worker(client)

    assert [token.id for token in answer.tokens] == hf.reference_greedy(folder, IDS, 16)
    got = [token.logprob for token in score.tokens[1:]]
    np.testing.assert_allclose(got, log_probabilities(folder, IDS), rtol=0, atol=2e-5)
    assert max(held) < experts <= sum(held)
