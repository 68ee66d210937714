"""A second machine joins by the line that `up` printed: two network namespaces with a cable between them."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tokenizers import Tokenizer

from e2e.running import running_up, until
from expertmesh_common.bundle.blobs import Bundle
from models.tiny_bundle import greedy_ids, tokenizer_json

PROMPT = "Hi!"
COUNT = 12


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def can_make_namespaces() -> str | None:
    """Why not, or None."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "needs Linux with iproute2"
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    name = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"network namespaces are not available: {made.stderr.strip()}"
    ip("netns", "del", name)
    return None


@pytest.fixture
def machines() -> Iterator[tuple[list[str], list[str]]]:
    """Command prefixes of two machines, 10.77.0.1 and 10.77.0.2."""
    reason = can_make_namespaces()
    if reason is not None:
        pytest.skip(reason)
    mark = f"{os.getpid() % 10**6}"
    first, second = f"ema{mark}", f"emb{mark}"
    with contextlib.ExitStack() as stack:
        for name in (first, second):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
        ip("link", "add", f"va{mark}", "netns", first, "type", "veth", "peer", "name", f"vb{mark}", "netns", second)
        for name, link, address in ((first, f"va{mark}", "10.77.0.1/24"), (second, f"vb{mark}", "10.77.0.2/24")):
            ip("-n", name, "address", "add", address, "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield ["ip", "netns", "exec", first], ["ip", "netns", "exec", second]


def run_client(machine: list[str], *arguments: str) -> str:
    done = subprocess.run(
        [*machine, sys.executable, "-m", "expertmesh.cli.main", *arguments],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "mutual TLS"])
def test_a_worker_of_a_second_machine_joins_by_the_printed_line_and_serves(machines, tiny_folder, folder, secure):
    here, there = machines
    arguments = ["--model", str(tiny_folder), "--workers", "2", "--budget-share", "0.5", "--listen", "0.0.0.0:7070"]
    arguments += ["--secure"] if secure else []
    with running_up(folder, arguments, prefix=here) as up:
        printed = next(line for line in up.said.splitlines() if "add a machine:" in line).partition("machine:")[2]
        assert "--join 10.77.0.1:7070 --token " in printed
        program, *line = shlex.split(printed)
        assert program == "expertmesh"
        log = (folder / "second.log").open("wb")
        tls = up.tls_folder  # what `up` says to copy; here both machines see one file system
        worker = subprocess.Popen(
            [*there, sys.executable, "-m", "expertmesh.cli.main", *line, "--id", "second", "--budget", "8MB",
             "--cache", str(folder / "cache-of-second")],
            stdout=log, stderr=log, cwd=None if tls is None else tls.parent,
        )  # fmt: skip
        try:
            access = ["--server", "10.77.0.1:7070", "--token", str(up.token)]
            access += [] if tls is None else ["--tls", str(tls)]
            holds = '"second"'
            until(lambda: holds in run_client(there, "experts", "--json", *access), 30)
            prompt_ids = Tokenizer.from_str(tokenizer_json().decode()).encode(PROMPT).ids
            expected = greedy_ids(Bundle(tiny_folder), prompt_ids, COUNT)
            answer = run_client(there, "generate", "--raw", "--max-tokens", str(COUNT), "--json", *access, PROMPT)
            assert str(expected)[1:-1] in answer
            # The first machine's workers end: whatever they held must be fetched over the cable and served from there.
            os.kill(up.pids["worker-1"], 9)
            answer = run_client(there, "generate", "--raw", "--max-tokens", str(COUNT), "--json", *access, PROMPT)
            assert str(expected)[1:-1] in answer
        finally:
            worker.terminate()
            assert worker.wait(30) == 0
            log.close()
        assert up.stop() == 0
