"""A stuck or ended engine thread is told by the liveness check; an idle one, and one that waits for work, is not."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from e2e.running import until
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.clock import SystemClock
from expertmesh_common.observability.pulse import Pulse
from expertmesh_controller import observing
from expertmesh_controller.gateway.batching.engine import Engine
from expertmesh_controller.gateway.batching.forward import Forward
from expertmesh_controller.gateway.batching.jobs import Request
from expertmesh_controller.gateway.trunk.local import LocalTrunk
from models import tiny_bundle as tiny
from models.numpy_plane import HeldPlane

BEAT_S = 0.05


class Watch:
    """What the engine's pulse takes for the time."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def plane(tmp_path):
    return HeldPlane(Bundle(tiny.make_tiny_bundle(tmp_path)))


@pytest.fixture
def watch():
    return Watch()


@pytest.fixture
async def engine(tmp_path, plane, watch, monkeypatch):
    monkeypatch.setattr("expertmesh_controller.gateway.batching.engine.IDLE_BEAT_S", BEAT_S)
    bundle = Bundle(tmp_path)
    trunk = LocalTrunk(bundle, "fp32", slots=2, context_tokens=64, chunk_tokens=16)
    forward = Forward(trunk, plane, bundle.manifest.layers, 5.0)
    forward.pulse = Pulse(watch)
    engine = Engine(trunk, forward, SystemClock(), 4)
    engine.start()
    yield engine
    plane.let_go.set()
    await engine.stop()


def alive(engine: Engine) -> str | None:
    loaded = SimpleNamespace(gateway=SimpleNamespace(engine=engine))
    shown = observing.gateway_shows(SimpleNamespace(running={"tiny": loaded}), asyncio.Event())
    (check,) = shown.alive
    return check.probe()


async def test_an_idle_engine_goes_on_turning(engine, watch):
    watch.pass_s(3 * observing.ENGINE_STALL_S)
    until(lambda: alive(engine) is None, 10)


async def test_an_engine_that_does_not_come_back_from_a_step_is_told_until_it_does(engine, plane, watch):
    engine.submit(Request((1, 2, 3), 2, SystemClock().monotonic() + 60))
    await asyncio.to_thread(plane.entered.wait, 10)
    watch.pass_s(2 * observing.ENGINE_STALL_S)
    assert "the engine of model tiny has not turned for" in (alive(engine) or "")
    plane.let_go.set()
    until(lambda: alive(engine) is None, 10)


async def test_an_engine_whose_thread_has_ended_is_told(engine, plane):
    plane.let_go.set()
    await engine.stop()
    assert alive(engine) == "the engine of model tiny has ended"


async def test_who_runs_and_who_waits_is_told_from_any_thread(engine, plane):
    deadline = SystemClock().monotonic() + 60
    for _ in range(3):
        engine.submit(Request((1, 2, 3), 2, deadline))
    await asyncio.to_thread(plane.entered.wait, 10)
    plane.entered.clear()
    assert engine.crowding.slots == 2
    assert engine.crowding.running + engine.crowding.waiting >= 1
