"""The faults of the soak: a schedule that one seed decides, and hands that do it to real processes."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import psutil

KILL, FREEZE, RESTART_GATEWAY, KILL_CONTROLLER, FREEZE_STORE = (
    "kill a worker", "freeze a worker", "kill a gateway", "kill the controller", "freeze the store",
)  # fmt: skip
_DOORS = {RESTART_GATEWAY, KILL_CONTROLLER}
_OFTEN = {KILL: 4, FREEZE: 3, RESTART_GATEWAY: 2, KILL_CONTROLLER: 1, FREEZE_STORE: 2}
_PAUSE_S = (6.0, 14.0)
_FROZEN_S = (0.5, 6.0)


@dataclass(frozen=True, slots=True)
class Fault:
    """`at_s` seconds after the start; `choice` in [0, 1) picks among those that it can happen to."""

    at_s: float
    what: str
    choice: float
    lasts_s: float


def schedule(seed: int, seconds: float, can: Sequence[str]) -> list[Fault]:
    """Faults until `seconds`, the same for the same seed; the last 10 s stay quiet, so that everything can end."""
    chance, at_s, faults = random.Random(seed), 3.0, []
    weights = [_OFTEN[what] for what in can]
    while at_s < seconds - 10:
        (what,) = chance.choices(can, weights)
        faults.append(Fault(at_s, what, chance.random(), chance.uniform(*_FROZEN_S)))
        at_s += chance.uniform(*_PAUSE_S)
    return faults


def possible(pids: Mapping[str, int]) -> list[str]:
    """What can happen to these processes."""
    gateways = any(name.startswith("gateway") for name in pids)
    store = bool(_stores(pids))
    found = [
        KILL,
        FREEZE,
        *([RESTART_GATEWAY, KILL_CONTROLLER] if gateways else []),
        *([FREEZE_STORE] if store else []),
    ]
    return [what for what in _OFTEN if what in found]


async def happen(
    faults: Sequence[Fault],
    now_s: Callable[[], float],
    pids: Callable[[], Mapping[str, int]],
    doors_open: Callable[[], Awaitable[None]],
) -> list[Fault]:
    """Do them one after the other, each at its time; returns those that met a process.

    What is promised holds while one door is open: a door is taken when `doors_open` says that all of them are.
    """
    met = []
    for fault in faults:
        await asyncio.sleep(max(0.0, fault.at_s - now_s()))
        if fault.what in _DOORS:
            await doors_open()
        if await _happen(fault, pids()):
            met.append(fault)
    return met


async def _happen(fault: Fault, pids: Mapping[str, int]) -> bool:
    victims = _stores(pids) if fault.what == FREEZE_STORE else _named(fault.what, pids)
    if not victims:
        return False
    victim = victims[int(fault.choice * len(victims))]
    frozen = fault.what in {FREEZE, FREEZE_STORE}
    try:
        os.kill(victim, signal.SIGSTOP if frozen else signal.SIGKILL)
        if frozen:
            await asyncio.sleep(fault.lasts_s)
            os.kill(victim, signal.SIGCONT)
    except ProcessLookupError:  # ended by itself, for instance given up while it was frozen
        return frozen
    return True


def _named(what: str, pids: Mapping[str, int]) -> list[int]:
    prefix = {KILL_CONTROLLER: "controller", RESTART_GATEWAY: "gateway"}.get(what, "worker")
    return [pid for name, pid in sorted(pids.items()) if name.startswith(prefix)]


def _stores(pids: Mapping[str, int]) -> list[int]:
    """The controller's store is its child."""
    try:
        children = psutil.Process(pids["controller"]).children(recursive=True)
    except (KeyError, psutil.NoSuchProcess):
        return []
    return [child.pid for child in children if "valkey" in child.name() or "redis" in child.name()]
