"""How to carve: sizes, the share to aim at, and the strength of each regression's prior."""

from __future__ import annotations

from dataclasses import dataclass

from expertmesh_forge.dense_model import DenseConfig
from expertmesh_forge.errors import CarveError

__all__ = ["CarveSettings", "check_settings"]


@dataclass(frozen=True, slots=True)
class CarveSettings:
    """Shares are fractions of the feed-forward neurons evaluated per token, averaged over tokens."""

    target_share: float
    experts: int = 16
    shared_experts: int = 8
    # Strength of the pull towards the dense down projection, relative to each neuron's own energy.
    refit_ridge: float = 0.1
    # How much of the error of the carved layers before this one its refit tries to undo: 0 repeats the dense block on
    # drifted inputs, 1 chases the dense model's states and overfits.
    drift_correction: float = 0.5
    router_ridge: float = 1e-3
    cluster_rounds: int = 5
    # Co-activation is judged on this many tokens; more changes nothing but the time.
    cluster_tokens: int = 3072
    seed: int = 0

    @property
    def routed_experts(self) -> int:
        return self.experts - self.shared_experts

    @property
    def routed_share(self) -> float:
        """Share of (token, routed expert) pairs to evaluate so that the whole block meets the target."""
        shared = self.shared_experts / self.experts
        return (self.target_share - shared) / (1.0 - shared)


def check_settings(settings: CarveSettings, config: DenseConfig) -> None:
    """Raise `CarveError` unless the model can be carved that way."""
    if not 0 <= settings.shared_experts < settings.experts:
        raise CarveError(f"{settings.shared_experts} shared of {settings.experts} experts leaves none to route to")
    if config.ffn % settings.experts:
        raise CarveError(
            f"{config.ffn} neurons per layer do not split into {settings.experts} equal experts; "
            f"choose a number of experts that divides {config.ffn}"
        )
    lowest = settings.shared_experts / settings.experts
    if not lowest <= settings.target_share <= 1.0:
        raise CarveError(
            f"a share of {settings.target_share:g} is not possible with {settings.shared_experts} shared of "
            f"{settings.experts} experts; choose one from {lowest:g} to 1"
        )
