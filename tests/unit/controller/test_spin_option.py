"""`--spin-us` of every command: its limits, and that it arrives where sockets are waited on."""

from __future__ import annotations

import pytest

from expertmesh.cli import failures
from expertmesh.cli.main import run
from expertmesh_api.v1 import experts_pb2
from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.errors import InvalidInput
from expertmesh_common.security import Security
from expertmesh_controller.gateway.hosting import Surroundings, _links
from expertmesh_controller.gateway.settings import GatewaySettings
from expertmesh_controller.gateway_settings import gateway_settings
from expertmesh_controller.local import polling
from expertmesh_controller.process import _surroundings
from expertmesh_controller.settings import read_settings
from expertmesh_worker.channel.experts_service import Identity
from expertmesh_worker.serving_experts import Behind, open_doors
from rigs.expert_hosts import IdentityHost

COMMANDS = {
    "worker": ["worker", "--join", "127.0.0.1:1"],
    "gateway": ["gateway", "--join", "127.0.0.1:1"],
    "controller": ["controller", "--model", "x"],
    "up": ["up", "--model", "x"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("value", ["-1", "1000001", "1.5"])
def test_no_command_takes_what_is_out_of_range(command, value, capsys):
    assert run([*COMMANDS[command], "--spin-us", value]) == failures.USAGE
    assert "--spin-us" in capsys.readouterr().err


@pytest.mark.parametrize("value", [-1, 1_000_001])
def test_a_gateway_of_its_own_refuses_the_same_and_names_it(tmp_path, value):
    with pytest.raises(InvalidInput, match=f"'spin_us'.*got {value}"):
        gateway_settings({"join": "a:1", "gateway_id": "g", "cache": tmp_path, "spin_us": value})


def test_what_a_gateway_is_told_reaches_its_links(tmp_path):
    of_its_own = gateway_settings({"join": "a:1", "gateway_id": "g", "cache": tmp_path, "spin_us": 9})
    of_a_controller = read_settings({"model": "x"}, {"EXPERTMESH_SPIN_US": "9"}, None)
    assert of_its_own.gateway.spin_us == 9
    assert _surroundings(of_a_controller, None, Security()).settings.spin_us == 9
    links = _links(Surroundings(None, settings=GatewaySettings(spin_us=9)))
    assert links._caller.spin_us == 9
    links.close()


def test_what_a_worker_is_told_reaches_its_settings(monkeypatch):
    given = []
    monkeypatch.setattr("expertmesh_worker.process.run", given.append)
    assert run([*COMMANDS["worker"], "--spin-us", "9"]) == 0
    assert run(COMMANDS["worker"]) == 0
    assert [settings.spin_us for settings in given] == [9, 0]


async def test_a_worker_s_doors_hand_it_to_their_streams(tmp_path):
    behind = Behind(IdentityHost(), None, experts_pb2.StatResponse, BlobStore(tmp_path))
    where = {"listen": "127.0.0.1:0", "advertise": "127.0.0.1"}
    doors = await open_doors(behind, Identity("w0", "g1", "h"), Security(), **where, spin_us=9)
    try:
        assert doors._streams._spin_us == 9
    finally:
        await doors.close(0.1)


@pytest.mark.parametrize(
    ("asked", "cores", "workers", "threads", "spin_us"),
    [
        (None, 4, 3, 1, polling.AUTO_SPIN_US), (None, 3, 3, 1, 0), (None, 4, 3, 2, 0), (None, 64, 0, 1, 0),
        (0, 64, 1, 1, 0), (7, 1, 3, 1, 7),
    ],
)  # fmt: skip
def test_up_polls_where_every_process_has_a_core_unless_it_is_told(asked, cores, workers, threads, spin_us):
    assert polling.spin_us(asked, cores=cores, workers=workers, gateways=1, threads=threads) == spin_us


def test_up_tells_all_its_processes_alike(monkeypatch, tmp_path):
    given = []

    async def run_up(request, *_):
        given.append((request.controller_options, request.worker_options, request.gateway_options))

    monkeypatch.setattr("expertmesh_controller.local.up.up", run_up)
    monkeypatch.setattr("expertmesh_common.usable_cores.usable_cores", lambda: 4)
    monkeypatch.setenv("EXPERTMESH_HOME", str(tmp_path))
    for environment, wanted in (({}, "1000"), ({"EXPERTMESH_SPIN_US": "5"}, "5")):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert run(["up", "--model", str(tmp_path), "--port", "0"]) == 0
        controller, worker, gateway = (dict(zip(o[::2], o[1::2], strict=True)) for o in given.pop())
        assert [o["--spin-us"] for o in (controller, worker, gateway)] == [wanted] * 3
