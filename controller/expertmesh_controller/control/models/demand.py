"""What is served now, as placement and workers need it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from expertmesh_controller.control.catalogue import Catalogue, ModelLimits, ServedModel, catalogue_of


@dataclass(frozen=True, eq=False)
class Demand:
    """The experts of every served model, and what each model may have at most. Every change is a new object."""

    models: tuple[ServedModel, ...]
    catalogue: Catalogue
    limits: Mapping[str, ModelLimits]

    @staticmethod
    def of(models: Iterable[ServedModel]) -> Demand:
        """The demand of these models.

        Raises:
            InvalidInput: two models share a name, or a bundle lacks the precision.

        """
        served = tuple(models)
        return Demand(served, catalogue_of(served), {m.name: m.limits for m in served if m.limits != ModelLimits()})
