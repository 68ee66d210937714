"""What the keeper of models knows about each of them, and what it asks of the control loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from expertmesh_controller.cluster.bundles import LeavingModel
from expertmesh_controller.cluster.models import ModelSpec
from expertmesh_controller.control.catalogue import ServedModel
from expertmesh_controller.control.models.opening import OpenedModel
from expertmesh_controller.control.view import View

State = Literal["opening", "serving", "draining", "failed"]


class Loop(Protocol):
    """What the keeper needs of the control loop."""

    def serve(self, models: Sequence[ServedModel]) -> None:
        """Place the experts of exactly these models."""

    def offer(self, models: Sequence[ServedModel], leaving: Sequence[LeavingModel]) -> None:
        """Let gateways in other processes answer for exactly these models, and end those that are `leaving`."""

    async def keep(self, key: str, value: bytes) -> None:
        """Write to the store, or raise Unavailable."""

    @property
    def other_gateways(self) -> int:
        """How many gateways in other processes listen to `offer`."""

    def view(self) -> View: ...


@dataclass(frozen=True, slots=True)
class Kept:
    """A model of this controller. `opened` is None while it is opened, and when that failed with `error`.

    `drain_s`: how long its answers may go on while it drains.
    """

    spec: ModelSpec
    state: State
    opened: OpenedModel | None = None
    error: str = ""
    drain_s: float = 0.0

    @property
    def digest(self) -> str:
        return "" if self.opened is None else self.opened.digest

    @property
    def experts(self) -> int:
        return 0 if self.opened is None else self.opened.experts
