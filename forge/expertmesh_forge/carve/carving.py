"""Carving a whole model, layer by layer, each from inputs that the carved layers before it produce."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from expertmesh_forge.carve.carved_model import CarvedLayer, CarvedModel, require_same_neurons
from expertmesh_forge.carve.partition import Partition, importance_partition
from expertmesh_forge.carve.refitting import refit_down, refit_target
from expertmesh_forge.carve.routing import LinearRouter, expert_norms, fit_router, threshold_for_share
from expertmesh_forge.carve.settings import CarveSettings, check_settings
from expertmesh_forge.dense_forward import Rope, attention, dense_step, embed, hidden_neurons, rms_norm
from expertmesh_forge.dense_model import DenseLayer, DenseModel, Floats

__all__ = ["LayerProgress", "carve_layer", "carve_model", "neuron_mask", "split_windows"]

LayerProgress = Callable[[int, int], None]

_THRESHOLD_ONE_IN = 6


def carve_model(
    model: DenseModel,
    windows: npt.NDArray[np.int64],
    settings: CarveSettings,
    on_layer: LayerProgress = lambda _done, _total: None,
) -> CarvedModel:
    """Carve every layer using calibration windows, int64 [windows, tokens]; the same input gives the same model."""
    config = model.config
    check_settings(settings, config)
    tokens, fit_windows = split_windows(windows)
    rope = Rope(config, tokens.shape[1])
    states = embed(model, tokens)
    dense = states[:fit_windows].copy()
    carved_layers: list[CarvedLayer] = []
    for layer in model.layers:
        states += attention(config, layer, rope, states)
        dense = dense_step(config, layer, rope, dense)
        rows = rms_norm(states, layer.ffn_norm, config.norm_eps).reshape(-1, config.hidden)
        missing = (dense - states[:fit_windows]).reshape(-1, config.hidden)
        carved, output = carve_layer(layer, rows, missing, settings)
        states += output.reshape(states.shape)
        carved_layers.append(carved)
        on_layer(len(carved_layers), config.layers)
    return CarvedModel(model, settings, tuple(carved_layers), fit_windows * tokens.shape[1])


def carve_layer(
    layer: DenseLayer, rows: Floats, missing: Floats, settings: CarveSettings
) -> tuple[CarvedLayer, Floats]:
    """Carve one block from its normed inputs `rows` [tokens, hidden]; returns it with its output on them.

    `missing` [fit tokens, hidden] is what the block would have to add to bring its rows back to the dense model's
    states. The regressions see as many rows as `missing` has; the threshold is set on the others, because scores of
    rows that the router was fitted to are more extreme than those of rows it will meet.
    """
    neurons = hidden_neurons(layer, rows)
    fit = slice(0, len(missing))
    partition = importance_partition(neurons[fit], layer.down, settings)
    norms = expert_norms(neurons[fit], layer.down, partition)
    router = fit_router(rows[fit], norms, settings.router_ridge)
    unseen = rows[len(missing) :] if len(missing) < len(rows) else rows
    router = router.with_threshold(threshold_for_share(router.scores(unseen), settings.routed_share))
    picks = router.picks(rows)
    target = refit_target(neurons[fit] @ layer.down.T, missing, settings.drift_correction)
    neurons *= neuron_mask(partition, picks)
    down = refit_down(neurons[fit], target, layer.down, settings.refit_ridge)
    carved = _assemble(layer, partition, router, down, picks)
    require_same_neurons(layer, carved)
    output: Floats = neurons @ down.T
    return carved, output


def neuron_mask(partition: Partition, picks: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which neurons are evaluated: picks [tokens, experts] -> bool [tokens, ffn] in dense order."""
    mask = np.ones((len(picks), partition.shared.size + partition.routed.size), np.bool_)
    for index, expert in enumerate(partition.routed):
        mask[:, expert] = picks[:, index : index + 1]
    return mask


def split_windows(windows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], int]:
    """Put the windows that only set thresholds last; returns all windows and how many the regressions may see."""
    for_threshold = np.arange(len(windows)) % _THRESHOLD_ONE_IN == _THRESHOLD_ONE_IN - 1
    ordered = np.concatenate([windows[~for_threshold], windows[for_threshold]])
    return ordered, int(np.count_nonzero(~for_threshold))


def _assemble(
    layer: DenseLayer, partition: Partition, router: LinearRouter, down: Floats, picks: npt.NDArray[np.bool_]
) -> CarvedLayer:
    order = partition.order
    return CarvedLayer(
        order=order,
        gate=layer.gate[order],
        up=layer.up[order],
        down=down[:, order],
        shared_width=partition.shared.size,
        expert_width=partition.routed.shape[1],
        router=router,
        frequency=tuple(float(share) for share in picks.mean(axis=0)),
    )
