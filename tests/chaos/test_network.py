"""A link between two machines that is cut, unplugged, lossy, slow, or open in one direction only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chaos.network import NEAR_ADDRESS, SPARE_ADDRESS, Cable, cable, why_not
from chaos.parts import LONG, SHORT, Parts, parts
from e2e.running import until

NOTICED_S, RECOVERED_S, AT_MOST = 2.0, 1.0, 3
TOKEN = "cable"

pytestmark = [pytest.mark.timeout(150), pytest.mark.slow]


@pytest.fixture
def link() -> Iterator[Cable]:
    reason = why_not()
    if reason is not None:
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; this must not be missing in CI")
        pytest.skip(reason)
    with cable() as made:
        yield made


@pytest.fixture
def mesh(link: Cable, tiny_folder: Path, folder: Path) -> Iterator[Parts]:
    """A controller on the near machine, not started yet."""
    with parts(tiny_folder, folder, host=NEAR_ADDRESS, port=7070, token=TOKEN) as mesh:
        yield mesh


class Near:
    """Asks from the near machine."""

    def __init__(self, mesh: Parts, link: Cable) -> None:
        self._mesh, self._link = mesh, link

    def nodes(self) -> dict[str, dict[str, object]]:
        done = subprocess.run(
            [*self._link.on_near, sys.executable, "-m", "expertmesh.cli.main", "nodes", "--json",
             "--server", self._mesh.address, "--token", TOKEN],
            capture_output=True, text=True, check=False, timeout=30, env=_environment(),
        )  # fmt: skip
        if done.returncode != 0:
            return {}
        listed = json.loads(done.stdout)
        return {node["worker_id"]: node for node in (listed["nodes"] if isinstance(listed, dict) else listed)}

    def until_states(self, within_s: float = 60.0, **states: str) -> float:
        def found() -> dict[str, object]:
            return {name: node["state"] for name, node in self.nodes().items()}

        return until(lambda: found() == states, within_s, lambda: f"{found()}\n{self._mesh.story()}")

    def answer(
        self, count: int, at: int | None = None, act: Callable[[], None] = lambda: None, answers: int = 1
    ) -> tuple[list[int], float]:
        """The ids of all answers and the longest pause, after token `at` if it is given; `act` is called at that.

        The engine runs ahead of who reads: only of several answers one is surely met in its middle.
        """
        ids, pauses, last = [], [0.0], None
        asked = (self._mesh.address, str(count), str(answers), TOKEN)
        with subprocess.Popen(
            [*self._link.on_near, sys.executable, "-m", "chaos.near_client", *asked],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment(),
        ) as client:  # fmt: skip
            assert client.stdout is not None
            assert client.stderr is not None
            for line in client.stdout:
                token, now = json.loads(line)
                if last is not None and (at is None or len(ids) > at):
                    pauses.append(now - last)
                ids.append(token)
                last = now
                if len(ids) == (0 if at is None else at):
                    act()
            assert client.wait(30) == 0, f"{client.stderr.read()}\n{self._mesh.story()}"
        return ids, max(pauses)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.fixture
def near(mesh: Parts, link: Cable) -> Near:
    return Near(mesh, link)


def start(mesh: Parts, link: Cable, near: Near, *, replica: bool) -> None:
    """A controller on the near machine and a worker that holds everything on the far one; a replica of it is near."""
    mesh.controller(prefix=link.on_near)
    until(lambda: near.nodes() == {} and "serving" in mesh.started[0].said, 60, mesh.story)
    mesh.worker("far", prefix=link.on_far)
    near.until_states(far="live")
    if replica:
        mesh.worker("near", prefix=link.on_near)
        near.until_states(far="live", near="live")


@pytest.mark.parametrize("kind", ["cut", "unplugged"])
def test_a_broken_link_costs_one_pause_and_no_token_while_there_is_a_replica(mesh, link, near, expected_long, kind):
    start(mesh, link, near, replica=True)
    break_it, mend_it = (link.cut, link.heal) if kind == "cut" else (link.unplug, link.plug)
    ids, pause_s = near.answer(LONG, 20, break_it, answers=3)
    assert ids == expected_long * 3
    assert NOTICED_S / 2 < pause_s < NOTICED_S * AT_MOST
    near.until_states(NOTICED_S * AT_MOST, near="live")
    mend_it()
    healed_s = near.until_states(RECOVERED_S * AT_MOST, far="live", near="live")
    assert near.answer(SHORT)[0] == expected_long[:SHORT]
    print(f"{kind}: pause {pause_s:.2f} s, back after {healed_s:.2f} s")


def test_an_answer_goes_on_after_the_only_link_is_healed(mesh, link, near, expected_long):
    """All experts are behind the link; it is cut for longer than the lease, so the far worker joins anew."""
    start(mesh, link, near, replica=False)

    def cut_then_heal() -> None:
        link.cut()
        time.sleep(4.0)
        link.heal()

    ids, pause_s = near.answer(LONG, 20, cut_then_heal, answers=3)
    assert ids == expected_long * 3
    assert 3.0 < pause_s < 4.0 + RECOVERED_S * AT_MOST
    print(f"cut for 4 s: pause {pause_s:.2f} s")


def test_with_five_percent_of_packets_lost_answers_are_right(mesh, link, near, expected_long):
    start(mesh, link, near, replica=False)
    link.lose(0.05)
    ids, pause_s = near.answer(60)
    assert ids == expected_long[:60]
    print(f"5 % loss: longest pause {pause_s:.2f} s")


def test_over_a_slow_link_experts_are_loaded_and_answers_are_right(mesh, link, near, expected_long):
    link.slow(kbit_per_s=512)
    start(mesh, link, near, replica=False)
    ids, pause_s = near.answer(40)
    assert ids == expected_long[:40]
    print(f"512 kbit/s: longest pause {pause_s:.2f} s")


def test_a_worker_that_can_be_joined_by_but_not_dialled_takes_nothing_over_and_serves_as_soon_as_it_can(
    mesh, link, near, expected_long
):
    """As behind a router that translates addresses: the worker dials out well, nobody reaches it."""
    mesh.controller(prefix=link.on_near)
    until(lambda: near.nodes() == {} and "serving" in mesh.started[0].said, 60, mesh.story)
    mesh.worker("near", prefix=link.on_near)
    near.until_states(near="live")
    mesh.worker("hidden", "--listen", "0.0.0.0:0", "--advertise", SPARE_ADDRESS, prefix=link.on_far)
    noticed_s = near.until_states(4.0 * AT_MOST, near="live", hidden="unreachable")
    assert near.answer(SHORT)[0] == expected_long[:SHORT]
    link.let_in()
    near.until_states(5.0 * AT_MOST, near="live", hidden="live")
    mesh.started[1].kill()  # now the one that was hidden serves alone
    ids, _ = near.answer(SHORT)
    assert ids == expected_long[:SHORT]
    print(f"unreachable after {noticed_s:.2f} s")
