"""Several gateways: any of them may go, and so may the control loop; answers go on with the same tokens."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.running import RunningUp, disturbed, gone, running_up, until
from expertmesh import Client, ExpertmeshError, ResumePolicy, Tls, TokenStream, Unauthenticated
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_controller.gateway.fetching import gateway_blobs
from models.tiny_bundle import greedy_ids

PROMPT = [72, 101, 108, 108, 111, 32, 119, 111, 114, 108, 100]
COUNT = 24
LONG = 400  # tokens; the engine runs ahead of who reads, so an answer must be long to be met in its middle
PAUSE_S = 9.0  # three times the promised 3 s for a gateway that was killed
NO_RESUME = ResumePolicy(attempts=1, first_attempts=1)


@pytest.fixture(scope="session")
def undisturbed(tiny_folder) -> list[int]:
    """Greedy tokens of a plain numpy forward pass."""
    return greedy_ids(Bundle(tiny_folder), PROMPT, LONG)


@contextlib.contextmanager
def two_gateways(tiny_folder: Path, folder: Path, *more: str) -> Iterator[RunningUp]:
    arguments = ["--model", str(tiny_folder), "--listen", "127.0.0.1:0", "--gateways", "2", *more]
    with running_up(folder, arguments) as up:
        assert len(up.addresses) == 2
        yield up


def long_stream(client: Client) -> TokenStream:
    return client.generate(prompt_ids=PROMPT, max_tokens=LONG, ignore_eos=True, deadline_s=90)


def stream_from(client: Client, address: str) -> tuple[TokenStream, list[int]]:
    """An answer that `address` has begun, and its first token; calls begin at one address after the other."""
    for _ in range(8):
        stream = long_stream(client)
        first = next(stream)
        if stream.address == address:
            return stream, [first.id]
        stream.close()
    raise AssertionError(f"{address} was never asked first")


def short_answer(address: str, **options) -> list[int]:
    with Client(address, resume=NO_RESUME) as client:
        answer = client.complete(prompt_ids=PROMPT, max_tokens=COUNT, ignore_eos=True, deadline_s=60, **options)
    return list(answer.token_ids)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("gateway-2", 1), ("controller", 0)])
def test_a_gateway_killed_in_mid_answer_costs_a_pause_and_no_token(tiny_folder, folder, undisturbed, name, number):
    with two_gateways(tiny_folder, folder) as up:
        victim = up.pids[name]
        with Client(list(up.addresses)) as client:
            stream, ids = stream_from(client, up.addresses[number])
            rest, pause_s = disturbed(stream, 20, lambda: os.kill(victim, signal.SIGKILL))
            assert ids + rest == undisturbed
            assert stream.address == up.addresses[1 - number]
            assert stream.result.resumed >= 1
            assert pause_s < PAUSE_S
            # The dead one is avoided, so nobody else waits for it; and it comes back.
            assert short_answer(",".join(up.addresses)) == undisturbed[:COUNT]
        until(lambda: f"{name} was ended by SIGKILL" in up.said, 20, lambda: up.said)
        until(lambda: _answers(up.addresses[number]), 60, lambda: up.said)
        assert short_answer(up.addresses[number]) == undisturbed[:COUNT]


def _answers(address: str) -> bool:
    with Client(address, resume=NO_RESUME) as client:
        try:
            return client.models(deadline_s=5)[0].ready
        except ExpertmeshError:
            return False


@pytest.mark.slow
def test_an_answer_of_a_separate_gateway_does_not_notice_that_the_control_loop_was_killed(
    tiny_folder, folder, undisturbed
):
    with two_gateways(tiny_folder, folder) as up:
        separate, victim = up.addresses[1], up.pids["controller"]
        with Client(separate, resume=NO_RESUME) as client:  # whatever the SDK would repair counts as lost here
            ids, pause_s = disturbed(long_stream(client), 20, lambda: os.kill(victim, signal.SIGKILL))
            assert ids == undisturbed
            assert pause_s < 3.0
        assert short_answer(separate) == undisturbed[:COUNT]  # without any control loop, perhaps
        until(lambda: "controller was ended by SIGKILL" in up.said, 20, lambda: up.said)
        with Client(up.address, deadline_s=60) as client:
            until(lambda: _nodes(client) == 3, 60, lambda: up.said)
            client.wait_ready(deadline_s=60)
        # The separate gateway hears the restarted control loop: it follows a change of routes.
        up.refresh()
        os.kill(up.pids["worker-1"], signal.SIGKILL)
        assert short_answer(separate) == undisturbed[:COUNT]
        until(lambda: "worker-1 was ended by SIGKILL" in up.said, 20, lambda: up.said)
        with Client(up.address) as client:
            client.wait_ready(deadline_s=60)
        assert short_answer(separate) == undisturbed[:COUNT]


def _nodes(client: Client) -> int:
    try:
        return len(client.nodes(deadline_s=5))
    except ExpertmeshError:
        return 0


@contextlib.contextmanager
def separate_gateway(folder: Path, join: str, *more: str) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """`expertmesh gateway` on a unix socket: (process, address, log)."""
    address, log = f"unix:{folder}/g.sock", folder / "gateway.log"
    command = [
        sys.executable, "-m", "expertmesh.cli.main", "gateway", "--join", join, "--listen", address,
        "--cache", str(folder / "bundles"), *more,
    ]  # fmt: skip
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        yield process, address, log
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.slow
def test_a_gateway_that_joins_fetches_the_bundle_without_its_experts_and_drains_when_asked_to_end(
    tiny_folder, folder, undisturbed
):
    with (
        running_up(folder, ["--model", str(tiny_folder), "--listen", "127.0.0.1:0", "--store", "memory"]) as up,
        separate_gateway(folder, up.address) as (process, address, log),
    ):
        until(lambda: _answers(address), 60, log.read_text)
        assert short_answer(address) == undisturbed[:COUNT]
        with Client(address) as near, Client(up.address) as far:
            asked = {"ids": PROMPT, "top_logprobs": 2}
            assert near.score(**asked).tokens == far.score(**asked).tokens
            assert near.models()[0].bundle_digest == far.models()[0].bundle_digest
            digest = near.models()[0].bundle_digest

            stream = long_stream(near)
            ids = [next(stream).id]
            process.send_signal(signal.SIGTERM)
            assert ids + [token.id for token in stream] == undisturbed
        assert process.wait(30) == 0
        fetched = {path.name for path in (folder / "bundles" / digest / "blobs" / "sha256").iterdir()}
        assert fetched == {blob.digest for blob in gateway_blobs(Bundle(tiny_folder).manifest, "fp32")}


def calls_in_vain(address: str, count: int) -> None:
    """Return when somebody has connected to the unix socket so often; nothing answers there."""
    path = Path(address.removeprefix("unix:"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(60)
        listener.bind(str(path))
        listener.listen()
        for _ in range(count):
            listener.accept()[0].close()
    path.unlink()


@pytest.mark.slow
def test_a_gateway_may_start_before_its_controller(tiny_folder, folder, undisturbed):
    controller = f"unix:{folder}/c.sock"
    with separate_gateway(folder, controller, "--model", str(tiny_folder)) as (process, address, log):
        calls_in_vain(controller, 2)  # it has failed once, and not ended
        assert process.poll() is None, log.read_text()
        with running_up(folder, ["--model", str(tiny_folder), "--listen", controller, "--store", "memory"]):
            until(lambda: _answers(address), 60, log.read_text)
            assert short_answer(address) == undisturbed[:COUNT]
            assert not (folder / "bundles").exists()
        assert not gone(process.pid)


@pytest.mark.slow
def test_a_secure_mesh_asks_for_tokens_at_every_gateway(tiny_folder, folder, undisturbed, monkeypatch):
    with two_gateways(tiny_folder, folder, "--secure") as up:
        tls = Tls.in_folder(folder / "home" / "tls")
        for address in up.addresses:
            with Client(address, token=up.token, tls=tls) as client:
                answer = client.complete(prompt_ids=PROMPT, max_tokens=COUNT, ignore_eos=True, deadline_s=60)
                assert list(answer.token_ids) == undisturbed[:COUNT]
            with Client(address, token="em_wrong_wrong", tls=tls) as client, pytest.raises(Unauthenticated):
                client.score("x")
        # Clients of this user on this machine name neither.
        monkeypatch.setenv("EXPERTMESH_HOME", str(folder / "home"))
        with Client(list(up.addresses), deadline_s=60) as client:
            for _ in up.addresses:
                answer = client.complete(prompt_ids=PROMPT, max_tokens=COUNT, ignore_eos=True)
                assert list(answer.token_ids) == undisturbed[:COUNT]
        up.stop()
    assert list((folder / "home" / "access").iterdir()) == []


def test_a_gateway_that_other_machines_could_use_without_a_token_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "expertmesh.cli.main", "gateway", "--join", "127.0.0.1:1", "--listen", "0.0.0.0:0"],
        env={**os.environ, "EXPERTMESH_HOME": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "lets other machines in" in done.stderr
    assert "Traceback" not in done.stderr
