from dataclasses import replace

import numpy as np
import pytest

from expertmesh_forge.carve.carved_model import neuron_checksum, require_same_neurons
from expertmesh_forge.carve.carving import carve_layer, carve_model, split_windows
from expertmesh_forge.carve.clustering import balanced_clusters
from expertmesh_forge.carve.forward import carved_block, run_carved
from expertmesh_forge.carve.partition import importance_partition, random_partition
from expertmesh_forge.carve.refitting import refit_down
from expertmesh_forge.carve.routing import expert_norms, fit_router, threshold_for_share
from expertmesh_forge.carve.settings import CarveSettings, check_settings
from expertmesh_forge.dense_forward import dense_states, ffn, logits
from expertmesh_forge.dense_model import DenseLayer
from expertmesh_forge.errors import CarveError
from expertmesh_forge.gguf_file import GgufFile
from expertmesh_forge.gguf_reader import read_model
from models import tiny_gguf as tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return read_model(GgufFile(tiny.write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")))


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(0, len(tiny.TOKENS), (12, 96))


@pytest.fixture(scope="module")
def carved(model, windows):
    return carve_model(model, windows, CarveSettings(target_share=0.75))


def test_every_dense_neuron_is_in_exactly_one_expert(model, carved):
    for dense, layer in zip(model.layers, carved.layers, strict=True):
        assert sorted(layer.order) == list(range(tiny.FFN))
        np.testing.assert_array_equal(neuron_checksum(dense.gate, dense.up), neuron_checksum(layer.gate, layer.up))
        assert (layer.shared_width, layer.expert_width, layer.experts) == (256, 32, 8)


def test_a_lost_or_changed_neuron_is_noticed(model, carved):
    layer = carved.layers[0]
    twice = layer.gate.copy()
    twice[1] = twice[0]
    with pytest.raises(CarveError, match="lost or repeated a neuron"):
        require_same_neurons(model.layers[0], replace(layer, gate=twice))


def test_with_every_expert_on_before_the_refit_the_logits_are_the_dense_ones(model, carved, windows):
    open_layers = tuple(
        replace(
            layer,
            down=dense.down[:, layer.order],
            router=layer.router.with_threshold(np.float32(np.finfo(np.float32).min)),
        )
        for dense, layer in zip(model.layers, carved.layers, strict=True)
    )
    run = run_carved(replace(carved, layers=open_layers), windows[:3])
    assert run.shares == pytest.approx(1.0)
    np.testing.assert_allclose(logits(model, run.states), logits(model, dense_states(model, windows[:3])), atol=1e-4)


def test_a_share_of_one_changes_nothing_even_with_the_refit(model, windows):
    whole = carve_model(model, windows, CarveSettings(target_share=1.0))
    run = run_carved(whole, windows[:3])
    np.testing.assert_allclose(logits(model, run.states), logits(model, dense_states(model, windows[:3])), atol=1e-4)


def test_the_realised_share_on_unseen_text_is_near_the_target(carved):
    unseen = np.random.default_rng(9).integers(0, len(tiny.TOKENS), (6, 96))
    assert run_carved(carved, unseen).shares.mean() == pytest.approx(0.75, abs=0.03)
    assert carved.calibration_share == pytest.approx(0.75, abs=0.03)


def test_the_same_seed_gives_the_same_model_and_another_seed_other_clusters(model, windows, carved):
    again = carve_model(model, windows, CarveSettings(target_share=0.75))
    other = carve_model(model, windows, CarveSettings(target_share=0.75, seed=1))
    for first, second in zip(carved.layers, again.layers, strict=True):
        np.testing.assert_array_equal(first.order, second.order)
        np.testing.assert_array_equal(first.down, second.down)
        assert first.router.threshold == second.router.threshold
    assert not np.array_equal(carved.layers[0].order, other.layers[0].order)


def test_progress_counts_the_layers(model, windows):
    seen = []
    carve_model(model, windows, CarveSettings(target_share=0.75), lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_shared_neurons_are_the_loudest_ones():
    settings = CarveSettings(target_share=0.75, experts=4, shared_experts=2)
    neurons = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)
    neurons[:, [1, 3, 5, 7, 9, 11, 13, 15]] *= 5
    partition = importance_partition(neurons, np.ones((4, 16), np.float32), settings)
    assert partition.shared.tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert sorted(partition.order) == list(range(16))
    assert sorted(random_partition(16, settings).order) == list(range(16))


def test_neurons_that_fire_together_are_clustered_together_in_equal_numbers():
    random = np.random.default_rng(0)
    groups = random.permutation(np.repeat(np.arange(4), 8))
    firing = random.random((32, 200)) * 0.1 + (np.arange(200) % 4 == groups[:, None])
    labels = balanced_clusters(firing.astype(np.float32), 4, 8, np.random.default_rng(3))
    assert np.bincount(labels).tolist() == [8, 8, 8, 8]
    assert len({(group, label) for group, label in zip(groups.tolist(), labels.tolist(), strict=True)}) == 4


def test_shuffling_the_routers_labels_destroys_what_routing_gains():
    layer, rows = _layer_with_topics()
    settings = CarveSettings(target_share=0.625, experts=16, shared_experts=8)
    carved, output = _carve(layer, rows, settings)
    shuffled = replace(
        carved.router, weights=np.roll(carved.router.weights, 1, axis=1), bias=np.roll(carved.router.bias, 1)
    )
    wrong, _ = carved_block(replace(carved, router=shuffled), rows)
    dense = _dense_output(layer, rows)
    right, _ = carved_block(carved, rows)
    np.testing.assert_allclose(right, output, atol=1e-4)
    assert np.square(wrong - dense).sum() > 4 * np.square(right - dense).sum()


def test_the_router_learns_a_linear_truth_and_its_threshold_meets_the_share():
    random = np.random.default_rng(0)
    rows, truth = random.standard_normal((500, 16)).astype(np.float32), random.standard_normal((16, 4))
    norms = (rows @ truth + 20).astype(np.float32)
    router = fit_router(rows, norms, ridge=1e-6)
    np.testing.assert_allclose(router.scores(rows), norms, atol=0.05)
    assert router.picks(rows).all()
    threshold = threshold_for_share(router.scores(rows), 0.3)
    assert router.with_threshold(threshold).picks(rows).mean() == pytest.approx(0.3, abs=0.01)
    assert not router.with_threshold(threshold_for_share(router.scores(rows), 0.0)).picks(rows).any()


def test_the_refit_lowers_the_error_and_keeps_silent_neurons_where_they_were():
    random = np.random.default_rng(0)
    neurons = random.standard_normal((400, 24)).astype(np.float32)
    neurons[:, 12:18] = neurons[:, :6] + 0.1 * neurons[:, 12:18]
    down = random.standard_normal((8, 24)).astype(np.float32)
    gated = neurons.copy()
    gated[:, 12:] = 0
    target = neurons @ down.T
    refitted = refit_down(gated, target, down, ridge=0.01)
    assert np.square(gated @ refitted.T - target).sum() < 0.7 * np.square(gated @ down.T - target).sum()
    np.testing.assert_array_equal(refitted[:, 12:], down[:, 12:])


def test_one_window_in_six_is_kept_from_the_regressions():
    windows = np.arange(12)[:, None].repeat(3, axis=1)
    ordered, fit = split_windows(windows)
    assert fit == 10
    assert ordered[:, 0].tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 5, 11]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (CarveSettings(target_share=0.4), "choose one from 0.5 to 1"),
        (CarveSettings(target_share=1.2), "choose one from 0.5 to 1"),
        (CarveSettings(target_share=0.8, experts=10), "do not split into 10 equal experts"),
        (CarveSettings(target_share=0.8, shared_experts=16), "leaves none to route to"),
    ],
)
def test_impossible_settings_are_refused_with_what_is_possible(model, settings, complaint):
    with pytest.raises(CarveError, match=complaint):
        check_settings(settings, model.config)


def _layer_with_topics():
    """A block of 64 neurons: 32 that always fire, and 8 groups of 4 that each answer to one direction of the input."""
    random = np.random.default_rng(0)
    noise = random.standard_normal((64, 16)).astype(np.float32) * 0.3
    gate = noise.copy()
    for group in range(8):
        gate[32 + 4 * group : 36 + 4 * group] = -1.0
        gate[32 + 4 * group : 36 + 4 * group, group] = 6.0
    gate[:32, 8] = 4.0
    rows = np.zeros((800, 16), np.float32)
    rows[np.arange(800), np.arange(800) % 8] = 1.0
    rows[:, 8] = 1.0
    rows += 0.05 * random.standard_normal(rows.shape).astype(np.float32)
    up = noise.copy()
    up[:, 8] += 2.0
    down = random.standard_normal((16, 64)).astype(np.float32)
    down[:, :32] *= 3
    return _layer(gate, up, down), rows


def _layer(gate, up, down):
    none = np.zeros((0, 0), np.float32)
    return DenseLayer(none, none, none, none, none, none, gate, up, down)


def _carve(layer, rows, settings):
    return carve_layer(layer, rows, _dense_output(layer, rows)[:600], settings)


def _dense_output(layer, rows):
    return ffn(layer, rows)


def test_expert_norms_are_the_lengths_of_the_experts_outputs():
    random = np.random.default_rng(0)
    neurons, down = random.standard_normal((5, 16)), random.standard_normal((4, 16))
    partition = random_partition(16, CarveSettings(target_share=0.8, experts=4, shared_experts=2))
    expected = np.linalg.norm(neurons[:, partition.routed[1]] @ down[:, partition.routed[1]].T, axis=1)
    np.testing.assert_allclose(expert_norms(neurons, down, partition)[:, 1], expected, rtol=1e-6)
