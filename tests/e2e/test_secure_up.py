"""`expertmesh up --secure`: certificates and tokens at every door, with real processes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time

import pytest

from e2e.running import RunningUp, running_up, until
from expertmesh import Client, ExpertmeshError, PermissionDenied, Unauthenticated, Unavailable
from expertmesh.access import Access
from expertmesh.channel import Tls
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.certificates import mint_development_ca
from models.tiny_bundle import greedy_ids

PROMPT = [72, 101, 108, 108, 111]
COUNT, LONG = 16, 400
REVOKED_WITHIN_S = 3.0  # promised: 1 s


def command(up: RunningUp, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """An `expertmesh` command as the user who runs the mesh: nothing but the address is named."""
    environment = {**os.environ, "EXPERTMESH_HOME": str(up.ready_file.parent / "home"), "EXPERTMESH_SERVER": up.address}
    done = subprocess.run(
        [sys.executable, "-m", "expertmesh.cli.main", *arguments], env=environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert not ok or done.returncode == 0, done.stderr
    return done


def access(up: RunningUp) -> Access:
    return Access(up.address, token=up.token, tls=tls_of(up))


def tls_of(up: RunningUp) -> Tls:
    return Tls.in_folder(up.tls_folder)


def client(up: RunningUp, token: str | None) -> Client:
    return Client(up.address, token=token, tls=tls_of(up))


def tokens_in_files(up: RunningUp) -> str:
    """Everything that the mesh logged or printed."""
    return up.said + "".join(path.read_text(errors="replace") for path in (up.ready_file.parent / "logs").glob("*.log"))


@pytest.fixture(scope="module")
def mesh(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("s")
    arguments = ["--model", str(tiny_folder), "--listen", "127.0.0.1:0", "--secure", "--transport", "tcp"]
    with running_up(folder, [*arguments, "--workers", "2", "--budget-share", "1.0"]) as up:
        yield up


@pytest.fixture(scope="module")
def expected(tiny_folder) -> list[int]:
    return greedy_ids(Bundle(tiny_folder), PROMPT, LONG)


def test_every_local_door_works_without_naming_a_token_or_a_certificate(mesh, expected):
    answer = json.loads(command(mesh, "generate", "--raw", "--json", "--max-tokens", "4", "Hello").stdout)
    assert len(answer["tokens"]) == 4
    assert "worker-1" in command(mesh, "nodes").stdout
    with client(mesh, mesh.token) as named:
        assert list(named.complete(prompt_ids=PROMPT, max_tokens=COUNT, ignore_eos=True).token_ids) == expected[:COUNT]


def test_who_has_no_token_no_certificate_or_a_foreign_one_is_refused(mesh, tmp_path):
    with client(mesh, "guess") as stranger, pytest.raises(Unauthenticated):
        stranger.models()
    mint_development_ca(tmp_path / "foreign", ["127.0.0.1"])
    foreign = Tls.in_folder(tmp_path / "foreign")
    with Client(mesh.address, token=mesh.token, tls=foreign, deadline_s=5) as stranger, pytest.raises(ExpertmeshError):
        stranger.models()


def test_a_token_of_scope_infer_asks_models_and_does_nothing_else(mesh):
    made = json.loads(command(mesh, "tokens", "create", "shop", "--scope", "infer", "--ttl", "1h", "--json").stdout)
    with client(mesh, made["token"]) as shop:
        assert len(shop.complete(prompt_ids=PROMPT, max_tokens=2, ignore_eos=True).token_ids) == 2
        with pytest.raises(PermissionDenied, match="needs operate"):
            shop.nodes()
    refused = command(mesh, "tokens", "list", "--token", made["token"], ok=False)
    assert refused.returncode == 4
    assert "needs admin" in refused.stderr
    assert made["token"] not in command(mesh, "tokens", "list").stdout


def test_revoking_a_token_ends_its_running_answer(mesh):
    with access(mesh) as admin:
        made = admin.create("app", ["infer"])
        ended: list[float] = []

        def read() -> None:
            with client(mesh, made.token) as app:
                try:
                    for token in app.generate(prompt_ids=PROMPT, max_tokens=LONG, ignore_eos=True):
                        if token.position == 5:
                            started.set()
                            time.sleep(0.2)  # a reader who lags behind is cut off as well
                except Unauthenticated:
                    ended.append(time.monotonic())

        started = threading.Event()
        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        assert started.wait(20)
        revoked = time.monotonic()
        admin.revoke(made.info.id)
        for reader in readers:
            reader.join(30)
        assert ended
        assert all(at - revoked < REVOKED_WITHIN_S for at in ended)
        with client(mesh, made.token) as app, pytest.raises(Unauthenticated):
            app.models()


def test_the_audit_is_shown_and_survives_the_controllers_death(mesh, expected):
    with access(mesh) as admin:
        kept = admin.create("kept", ["infer"])
        before = [(e.token_name, e.method, e.result) for e in admin.audit()]
        assert ("bootstrap", "Access/CreateToken", "OK") in before
    controller = mesh.pids["controller"]
    os.kill(controller, 9)
    until(lambda: (mesh.refresh(), mesh.pids["controller"] not in (None, controller))[1], 20)

    def answers() -> bool:
        try:
            with Client(mesh.address, token=kept.token, tls=tls_of(mesh), deadline_s=5) as again:
                return (
                    list(again.complete(prompt_ids=PROMPT, max_tokens=COUNT, ignore_eos=True).token_ids)
                    == (expected[:COUNT])
                )
        except (Unavailable, ExpertmeshError):
            return False

    until(answers, 60, lambda: mesh.said)
    with access(mesh) as admin:
        assert [(e.token_name, e.method, e.result) for e in admin.audit()][: len(before)] == before
    assert "bootstrap" in command(mesh, "tokens", "audit").stdout


def test_certificates_are_renewed_under_a_running_answer(mesh, expected):
    with client(mesh, mesh.token) as early:
        stream = early.generate(prompt_ids=PROMPT, max_tokens=LONG, ignore_eos=True, deadline_s=60)
        ids = [next(stream).id for _ in range(5)]
        before = command(mesh, "certs", "show", str(mesh.tls_folder)).stdout
        command(mesh, "certs", "renew", str(mesh.tls_folder))
        shown = command(mesh, "certs", "show", str(mesh.tls_folder), "--server", mesh.address).stdout
        assert "verdict:    good" in shown
        assert before.splitlines()[3] != shown.splitlines()[3]
        for _ in range(5):
            with client(mesh, mesh.token) as late:
                assert late.models()[0].name == "tiny"
        ids += [token.id for token in stream]
    assert ids == expected


def test_neither_logs_nor_screens_show_a_token_that_is_not_meant_to_be_copied(mesh):
    with access(mesh) as admin:
        made = admin.create("quiet", ["operate"])
    command(mesh, "nodes", "--token", made.token)
    text = tokens_in_files(mesh)
    assert mesh.token not in text
    assert made.token not in text
    left = mesh.ready_file.parent / "home" / "access" / mesh.address.rpartition(":")[2]
    for path in (left, mesh.ready_file, mesh.tls_folder / "key.pem"):
        assert path.stat().st_mode & 0o777 == 0o600, path


@pytest.mark.slow
def test_the_printed_line_adds_a_worker_whose_token_can_only_join(tiny_folder, folder, expected):
    arguments = ["--model", str(tiny_folder), "--listen", "0.0.0.0:0", "--secure", "--workers", "2"]
    with running_up(folder, [*arguments, "--budget-share", "0.5"]) as up:
        printed = next(line for line in up.said.splitlines() if "add a machine:" in line).partition("machine:")[2]
        program, *line = shlex.split(printed)
        token = re.search(r"--token (\S+)", printed)[1]
        assert (program, token != up.token) == ("expertmesh", True)
        with client(up, token) as joiner, pytest.raises(PermissionDenied, match="needs infer"):
            joiner.models()
        log = (folder / "third.log").open("wb")
        more = ["--id", "third", "--budget", "8MB", "--cache", str(folder / "third-cache")]
        worker = subprocess.Popen(
            [sys.executable, "-m", "expertmesh.cli.main", *line, *more],
            stdout=log,
            stderr=log,
            cwd=up.tls_folder.parent,
        )
        try:
            with client(up, up.token) as admin:
                until(lambda: any("third" in e.worker_ids for e in admin.experts()), 40)
                answer = admin.complete(prompt_ids=PROMPT, max_tokens=COUNT, ignore_eos=True)
                assert list(answer.token_ids) == expected[:COUNT]
                with access(up) as tokens:
                    tokens.revoke(token.split("_")[1])
                until(lambda: worker.poll() is not None, 20)
                assert b"revoked" in (folder / "third.log").read_bytes()
                # Whoever joined with another token goes on.
                answer = admin.complete(prompt_ids=PROMPT, max_tokens=COUNT, ignore_eos=True)
                assert list(answer.token_ids) == expected[:COUNT]
                assert {n.worker_id for n in admin.nodes()} == {"worker-1", "worker-2"}
        finally:
            worker.kill()
            worker.wait()
            log.close()
