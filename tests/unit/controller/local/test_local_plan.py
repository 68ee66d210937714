"""What `up` starts is decided before anything runs."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from expertmesh_common.access.tokens import new_token
from expertmesh_common.errors import InvalidInput
from expertmesh_controller.local.asking import UpFlags, up_request
from expertmesh_controller.local.local_model import find_bundles, local_models
from expertmesh_controller.local.plan import controller_spec, gateway_specs, worker_specs
from expertmesh_controller.local.reaching import free_port, is_local_only, reachable_host
from expertmesh_controller.local.restarts import Failures, RestartPolicy, count_failures, restart_delay_s
from expertmesh_controller.local.showing import join_line
from expertmesh_controller.settings import read_settings
from models import tiny_bundle


def flags(tmp_path, **changes):
    values = {
        "models": (str(tmp_path),), "workers": 3, "budget_share": 0.6, "listen": "0.0.0.0:7070", "precision": "fp32",
        "transport": "auto", "token": None, "secure": False, "tls": None, "cache": tmp_path, "logs": None,
        "controller_options": (),
    }  # fmt: skip
    return UpFlags(**{**values, **changes})


def test_listening_beyond_this_machine_demands_a_random_token(tmp_path):
    first, second = (up_request(flags(tmp_path), tmp_path).token for _ in range(2))
    assert first
    assert first != second
    assert up_request(flags(tmp_path, listen="127.0.0.1:7070"), tmp_path).token is None
    assert up_request(flags(tmp_path, token="mine"), tmp_path).token == "mine"


def test_secure_demands_certificates_and_a_token_on_this_machine_too(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPERTMESH_HOME", str(tmp_path / "home"))
    request = up_request(flags(tmp_path, listen="127.0.0.1:7070", secure=True), tmp_path)
    assert request.token
    assert (request.tls / "key.pem").stat().st_mode & 0o777 == 0o600


def test_the_token_goes_through_the_environment_and_never_through_arguments(tmp_path):
    request = up_request(flags(tmp_path, token="secret-token"), tmp_path)
    controller, *workers = [controller_spec(request, {"A": "b"}), *worker_specs(request, 100, {"A": "b"})]
    assert len(workers) == 3
    assert controller.environment["EXPERTMESH_TOKEN"] == "secret-token"
    for spec in (controller, *workers):
        assert spec.environment["A"] == "b"
        assert "secret-token" not in " ".join(spec.arguments)
        assert request.join_token not in " ".join(spec.arguments)
        assert request.local_token not in " ".join(spec.arguments)


def test_a_chosen_token_that_further_gateways_could_not_know_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="expertmesh tokens new"):
        up_request(flags(tmp_path, token="mine", gateways=2), tmp_path)
    assert up_request(flags(tmp_path, token=new_token(), gateways=2), tmp_path).token


def test_workers_get_a_token_that_can_only_join(tmp_path):
    request = up_request(flags(tmp_path, token="secret-token"), tmp_path)
    joining = f"{request.join_token},{request.local_token}"
    assert controller_spec(request, {}).environment["EXPERTMESH_JOIN_TOKEN"] == joining
    for spec in worker_specs(request, 100, {}):
        assert spec.environment["EXPERTMESH_TOKEN"] == request.local_token
        assert "secret-token" not in spec.environment.values()


def test_a_token_of_the_surroundings_does_not_leak_into_a_mesh_without_one(tmp_path):
    request = up_request(flags(tmp_path, listen="unix:/tmp/x"), tmp_path)
    assert "EXPERTMESH_TOKEN" not in controller_spec(request, {"EXPERTMESH_TOKEN": "old"}).environment


def test_workers_of_this_machine_join_over_loopback_with_their_own_names(tmp_path):
    request = up_request(flags(tmp_path), tmp_path)
    specs = worker_specs(request, 12345, {})
    assert [spec.name for spec in specs] == ["worker-1", "worker-2", "worker-3"]
    for spec in specs:
        assert "127.0.0.1:7070" in spec.arguments
        assert "12345" in spec.arguments
        assert spec.name in spec.arguments


def test_what_only_workers_or_gateways_are_told_goes_to_them_alone(tmp_path):
    given = {
        "gateways": 2,
        "token": new_token(),
        "worker_options": ("--spin-us", "7"),
        "gateway_options": ("--slots", "4"),
    }
    request = up_request(flags(tmp_path, **given), tmp_path)
    for spec in worker_specs(request, 1, {}):
        assert spec.arguments[-2:] == ("--spin-us", "7")
    (gateway,) = gateway_specs(request, {})
    assert gateway.arguments[-2:] == ("--slots", "4")
    assert "--spin-us" not in (*gateway.arguments, *controller_spec(request, {}).arguments)


def test_the_printed_line_names_an_address_that_others_can_dial(tmp_path):
    request = up_request(flags(tmp_path, token="t0"), tmp_path)
    line = join_line(request)
    assert line == f"expertmesh worker --join {reachable_host()}:7070 --token {request.join_token}"
    assert "--token t0" not in line
    assert "0.0.0.0" not in line


@pytest.mark.parametrize("changes", [{"precision": "fp8"}, {"transport": "carrier"}, {"listen": "7070"}])
def test_wrong_flags_are_refused_with_what_is_allowed(tmp_path, changes):
    with pytest.raises(InvalidInput, match=r"allowed are|expected"):
        up_request(flags(tmp_path, **changes), tmp_path)


def test_without_a_bundle_it_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="expertmesh demo"):
        find_bundles(())


def test_port_0_becomes_a_free_port(tmp_path):
    listen = up_request(flags(tmp_path, listen="127.0.0.1:0"), tmp_path).listen
    assert int(listen.rpartition(":")[2]) > 0
    port = free_port("127.0.0.1")
    with socket.create_server(("127.0.0.1", port)):
        lowest, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        assert 0 < port < lowest  # no connection of anybody is given it while a killed process is started again


@pytest.mark.parametrize(
    ("address", "local"),
    [("unix:/a", True), ("127.0.0.1:1", True), ("localhost:1", True), ("[::1]:1", True), ("0.0.0.0:1", False),
     ("10.0.0.1:1", False), ("host.example:1", False)],
)  # fmt: skip
def test_local_only_addresses_are_known(address, local):
    assert is_local_only(address) is local


def test_restarts_wait_longer_each_time_then_give_up():
    policy = RestartPolicy(base_s=0.25, max_s=1.0, give_up=5)
    assert [restart_delay_s(policy, Failures(n, n)) for n in (1, 2, 3, 4, 5)] == [0.25, 0.5, 1.0, 1.0, None]
    assert [restart_delay_s(policy, Failures(n, 4)) for n in (5, 5000)] == [1.0, 1.0]


def test_a_long_life_starts_the_count_over():
    policy = RestartPolicy(healthy_s=30)
    assert count_failures(policy, Failures(4, 2), lived_s=1, exit_code=1) == Failures(5, 3)
    assert count_failures(policy, Failures(4, 2), lived_s=31, exit_code=1) == Failures(1, 1)


@pytest.mark.parametrize(("code", "own"), [(-signal.SIGKILL, 2), (-signal.SIGTERM, 2), (-signal.SIGSEGV, 3), (0, 3)])
def test_who_is_killed_from_outside_is_waited_for_longer_but_not_given_up(code, own):
    assert count_failures(RestartPolicy(), Failures(4, 2), lived_s=1, exit_code=code) == Failures(5, own)


def test_flags_win_over_environment_over_file(tmp_path: Path):
    file = tmp_path / "settings.toml"
    file.write_text('[controller]\nmodel = "from-file"\nslots = 2\nthreads = 3\nstore = "memory"\n')
    settings = read_settings({"slots": 8, "threads": None}, {"EXPERTMESH_THREADS": "5", "EXPERTMESH_SLOTS": "4"}, file)
    assert (str(settings.models[0].path), settings.slots, settings.threads, settings.store) == (
        "from-file",
        8,
        5,
        "memory",
    )


@pytest.mark.parametrize(
    ("flag", "value"),
    [("slots", 0), ("transport", "pigeon"), ("precision", "fp8"), ("threads", "many"), ("spin_us", -1),
     ("spin_us", 1_000_001)],
)  # fmt: skip
def test_a_setting_out_of_range_is_named(flag, value):
    with pytest.raises(InvalidInput, match=flag):
        read_settings({"model": "x", flag: value}, {}, None)


def test_an_unknown_key_of_the_file_is_named(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text('[controller]\nmodel = "x"\nslotz = 2\n')
    with pytest.raises(InvalidInput, match="slotz"):
        read_settings({}, {}, file)


def test_a_missing_model_is_named():
    with pytest.raises(InvalidInput, match="model"):
        read_settings({}, {}, None)


def test_experts_that_the_gateway_holds_are_not_waited_for_on_workers(tmp_path):
    (model,) = local_models([("", tiny_bundle.make_tiny_bundle(tmp_path))], "fp32")

    shares = {layers: model.experts_elsewhere("fast", layers) for layers in ("", "0", "0-1")}

    each = tiny_bundle.EXPERTS
    layers = len(model.manifest.layers)
    assert shares == {"": 0, "0": (layers - 1) * each, "0-1": (layers - 2) * each}
    assert model.experts_elsewhere("exact", "") == model.experts == layers * each
