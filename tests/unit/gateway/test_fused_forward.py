"""Layers in graphs with their experts under the batch engine: the same tokens, shares and counts as layer by layer."""

import numpy as np
import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.clock import SystemClock
from expertmesh_common.errors import InvalidInput, Precondition
from expertmesh_common.graphs.fusing import require_fusable
from expertmesh_controller.gateway.batching.forward import Forward
from expertmesh_controller.gateway.batching.handing import Parcel, opened
from expertmesh_controller.gateway.batching.jobs import Facts, Job, Picked, Request, Ticket
from expertmesh_controller.gateway.batching.picks import FOLD_ROWS, picks_of
from expertmesh_controller.gateway.batching.stepping import Stepper
from expertmesh_controller.gateway.batching.tally import Tally
from expertmesh_controller.gateway.trunk.executor import Chunk, Work
from expertmesh_controller.gateway.trunk.local import LocalTrunk
from models import tiny_bundle as tiny
from models.numpy_plane import NumpyPlane

SIZES = {"slots": 4, "context_tokens": 128, "chunk_tokens": 32}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("tiny")))


def forward_of(bundle: Bundle, **stops) -> tuple[LocalTrunk, Forward]:
    trunk = LocalTrunk(bundle, "fp32", **stops, **SIZES)
    return trunk, Forward(trunk, NumpyPlane(bundle), bundle.manifest.layers, 10.0)


@pytest.fixture(params=[(), (1,), (0, 2), (2,)], ids=str)
def fused(request, bundle: Bundle) -> tuple[LocalTrunk, Forward]:
    return forward_of(bundle, stops=request.param)


def a_prompt(slot: int = 0) -> Work:
    ids = np.arange(30, 50)
    return Work(np.empty(0, np.int64), np.empty(0, np.int32), Chunk(slot, 0, ids, ends_prompt=True))


def test_requests_of_a_batch_get_the_tokens_of_the_oracle(bundle, fused) -> None:
    prompts, answers = [[1, 2, 3], list(range(60, 105)), [9]], {}

    def post(parcel: Parcel) -> None:
        for ticket, event in opened(parcel, Tally()):
            if isinstance(event, Picked):
                answers.setdefault(ticket.key, []).append(event.choice.token_id)

    stepper = Stepper(*fused, SystemClock(), post)
    for key, prompt in enumerate(prompts):
        stepper.join(Job(Request(tuple(prompt), 8, 1e12), Ticket(key, Facts(0.0))))
    while stepper.roster.busy:
        stepper.step()
    assert answers == {key: tiny.greedy_ids(bundle, prompt, 8) for key, prompt in enumerate(prompts)}


def test_shares_and_counts_are_those_of_the_layered_way(bundle, fused) -> None:
    trunk, forward = fused
    layered, whole, layers = forward_of(bundle)[1], forward_of(bundle, stops=())[1], bundle.manifest.layers
    for each in (layered, whole, forward):
        each.run(a_prompt(), 1e9)
    np.testing.assert_allclose(forward.active, layered.active, rtol=1e-12)
    assert len(set(forward.active)) > 1, "rows that all pick alike would show nothing"
    assert layered.picks is None
    rows = whole.picks.rows()
    assert forward.picks.rows() == {at: count for at, count in rows.items() if at[0] not in trunk.stops}
    routed = layered.active * 3 * layers[0].total_width - 3 * tiny.SHARED_WIDTH
    assert sum(rows.values()) * tiny.EXPERT_WIDTH == pytest.approx(routed.sum())


def test_the_rows_of_a_top_k_gate_are_counted_exactly_however_they_come_together(bundle) -> None:
    gate = bundle.manifest.layers[0].gate.model_copy(update={"picker": "top_k", "max_k": 2})
    layers = [layer.model_copy(update={"gate": gate}) for layer in bundle.manifest.layers]
    picks, random = picks_of(layers, range(3)), np.random.default_rng(1)
    scores = random.standard_normal((FOLD_ROWS + 50, 3, 5)).astype(np.float32)
    shares = []
    for part in np.array_split(scores, 40):
        shares.append(picks.take(part))
        picks.fold()
    best = np.argsort(-scores[:, :, : tiny.EXPERTS], axis=2)[:, :, :2]
    want = {
        (layer, expert): int((best[:, layer] == expert).sum()) for layer in range(3) for expert in range(tiny.EXPERTS)
    }
    assert picks.rows() == want
    assert picks.rows() == want, "asking counts nothing twice"
    np.testing.assert_allclose(np.concatenate(shares), 2 * tiny.EXPERT_WIDTH / layers[0].total_width)


def test_rows_that_are_asked_for_or_taken_while_others_are_counted_are_not_lost(bundle, monkeypatch) -> None:
    gate = bundle.manifest.layers[0].gate.model_copy(update={"picker": "top_k", "max_k": 1})
    picks = picks_of([bundle.manifest.layers[0].model_copy(update={"gate": gate})], {0})
    count, asked = picks._count, []

    def counted(waiting):
        if not asked:
            asked.append(0)
            asked[0] = sum(picks.rows().values())
            picks.take(np.zeros((3, 1, tiny.EXPERTS), np.float32))  # a step beside it
        return count(waiting)

    monkeypatch.setattr(picks, "_count", counted)
    picks.take(np.zeros((FOLD_ROWS, 1, tiny.EXPERTS), np.float32))
    assert not asked, "nothing is counted by the thread that takes"
    picks.fold()
    assert asked == [FOLD_ROWS]
    assert sum(picks.rows().values()) == FOLD_ROWS + 3


def test_what_piled_up_is_counted_in_passes_of_a_few_hundred_rows(bundle, monkeypatch) -> None:
    gate = bundle.manifest.layers[0].gate.model_copy(update={"picker": "top_k", "max_k": 1})
    picks = picks_of([bundle.manifest.layers[0].model_copy(update={"gate": gate})], {0})
    count, passes = picks._count, []
    monkeypatch.setattr(picks, "_count", lambda waiting: (passes.append(sum(map(len, waiting))), count(waiting))[1])
    for _ in range(100):
        picks.take(np.zeros((FOLD_ROWS // 8, 1, tiny.EXPERTS), np.float32))
    for _ in range(20):
        picks.fold()

    assert passes == [FOLD_ROWS] * 12
    assert sum(picks.rows().values()) == 100 * FOLD_ROWS // 8


def test_every_row_of_a_model_of_dense_layers_goes_through_all_of_it(bundle) -> None:
    dense = {"kind": "dense", "gate": None, "experts": (), "shared_width": bundle.manifest.layers[0].total_width}
    layers = [layer.model_copy(update=dense) for layer in bundle.manifest.layers]
    forward = Forward(LocalTrunk(bundle, "fp32", stops=(), **SIZES), NumpyPlane(bundle), layers, 10.0)
    forward.run(a_prompt(), 1e9)

    assert forward.active.tolist() == [1.0] * 20


def test_a_model_without_a_fused_form_is_refused_with_the_layer(bundle) -> None:
    gate = bundle.manifest.layers[1].gate.model_copy(update={"max_k": 2})
    layers = list(bundle.manifest.layers)
    layers[1] = layers[1].model_copy(update={"gate": gate})
    changed = bundle.manifest.model_copy(update={"layers": tuple(layers)})
    with pytest.raises(InvalidInput, match="layer 1 has no fused form"):
        require_fusable(changed, "fp32")
    require_fusable(changed, "fp32", {0, 2})


def test_rows_between_layers_cannot_be_shown(fused) -> None:
    _, forward = fused
    forward.tap = object()
    with pytest.raises(Precondition, match="numerics `fast`"):
        forward.run(a_prompt(), 1e9)
