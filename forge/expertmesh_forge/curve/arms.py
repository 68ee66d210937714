"""The arms of the comparison: which neurons each evaluates, at an equal share.

carved          shared by importance, experts by co-activation, linear router, refit
carved-no-refit the same without the refit of the down projections
oracle          the same partition and refit, experts picked by their true output length (an upper bound for routers)
static          the most important neurons for every token, no router, no refit
static-refit    the same with the refit: what is left of the carved arm's lead over it is the routing's
random          a random partition with its own linear router and refit
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from expertmesh_forge.carve.carving import neuron_mask
from expertmesh_forge.carve.partition import Partition, importance_partition, neuron_importance, random_partition
from expertmesh_forge.carve.routing import expert_norms, fit_router, threshold_for_share
from expertmesh_forge.carve.settings import CarveSettings
from expertmesh_forge.dense_model import DenseLayer, Floats

__all__ = ["ARMS", "Arm", "LayerInput"]

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LayerInput:
    """One block's normed `rows` [tokens, hidden] and `neurons` [tokens, ffn].

    The regressions may see the first `fit` rows, thresholds the rows from there to `calibration`; the rest is
    held-out.
    """

    layer: DenseLayer
    rows: Floats
    neurons: Floats
    fit: int
    calibration: int


@dataclass(frozen=True, slots=True)
class Arm:
    """`mask` says which neurons each row evaluates, bool [tokens, ffn].

    With `shares_by_importance` the shared experts hold the most important neurons, and others are routed to.
    """

    name: str
    refit: bool
    mask: Callable[[LayerInput, CarveSettings], Mask]
    shares_by_importance: bool = False


def _carved(given: LayerInput, settings: CarveSettings) -> Mask:
    return _routed(given, _importance(given, settings), settings)


def _random(given: LayerInput, settings: CarveSettings) -> Mask:
    return _routed(given, random_partition(given.neurons.shape[1], settings), settings)


def _oracle(given: LayerInput, settings: CarveSettings) -> Mask:
    partition = _importance(given, settings)
    norms = expert_norms(given.neurons, given.layer.down, partition)
    threshold = threshold_for_share(norms[: given.calibration], settings.routed_share)
    return neuron_mask(partition, norms >= threshold)


def _static(given: LayerInput, settings: CarveSettings) -> Mask:
    importance = neuron_importance(given.neurons[: given.fit], given.layer.down)
    kept = np.argsort(-importance, kind="stable")[: round(settings.target_share * len(importance))]
    mask = np.zeros(given.neurons.shape, np.bool_)
    mask[:, kept] = True
    return mask


def _importance(given: LayerInput, settings: CarveSettings) -> Partition:
    return importance_partition(given.neurons[: given.fit], given.layer.down, settings)


def _routed(given: LayerInput, partition: Partition, settings: CarveSettings) -> Mask:
    norms = expert_norms(given.neurons[: given.fit], given.layer.down, partition)
    router = fit_router(given.rows[: given.fit], norms, settings.router_ridge)
    unseen = router.scores(given.rows[given.fit : given.calibration])
    threshold = threshold_for_share(unseen, settings.routed_share)
    return neuron_mask(partition, router.with_threshold(threshold).picks(given.rows))


ARMS: tuple[Arm, ...] = (
    Arm("carved", refit=True, mask=_carved, shares_by_importance=True),
    Arm("carved-no-refit", refit=False, mask=_carved, shares_by_importance=True),
    Arm("oracle", refit=True, mask=_oracle, shares_by_importance=True),
    Arm("static-refit", refit=True, mask=_static),
    Arm("static", refit=False, mask=_static),
    Arm("random", refit=True, mask=_random),
)
