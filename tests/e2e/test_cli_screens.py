"""Every screen of the command line against a real mesh: piped, on a terminal, in JSON, at 80 and 120 columns."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys

import pytest

from e2e.running import RunningUp, running_up, until
from models.tiny_bundle import EXPERTS, LAYERS

EXPERT_COUNT = LAYERS * EXPERTS
READS = (
    ("version",), ("status",), ("nodes",), ("experts",), ("experts", "--by", "rows"), ("experts", "--by", "worker"),
    ("models", "list"), ("route", "explain", "hello"), ("route", "explain", "hello", "--layer", "1"),
    ("route", "explain", "hello", "--at", "2"), ("doctor",),
)  # fmt: skip
STDOUT_WITHOUT_SECRETS = ("Traceback", "Error:", "None")


@pytest.fixture(scope="module")
def up(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("e")
    arguments = ["--model", str(tiny_folder), "--listen", "127.0.0.1:0", "--store", "memory", "--token", "t-admin"]
    arguments += ["--budget-share", "1"]
    with running_up(folder, arguments) as running:
        yield running


def environment(up: RunningUp, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EXPERTMESH_", "NO_COLOR"))}
    home = str(up.ready_file.parent / "home")
    return kept | {"EXPERTMESH_SERVER": up.address, "EXPERTMESH_HOME": home, "TERM": "xterm-256color"} | more


def run(up: RunningUp, *arguments: str, text: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "expertmesh.cli.main", *arguments]
    return subprocess.run(
        command, env=environment(up, **more), input=text, capture_output=True, text=True, check=False, timeout=60
    )


def on_terminal(up: RunningUp, *arguments: str, **more: str) -> str:
    """What the command shows on a terminal."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "expertmesh.cli.main", *arguments]
    process = subprocess.Popen(command, env=environment(up, **more), stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # a terminal whose program has ended
        while piece := os.read(master, 65536):
            shown += piece
    os.close(master)
    assert process.wait(60) == 0, shown
    return shown.decode()


def as_json(up: RunningUp, *arguments: str):
    done = run(up, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("arguments", READS, ids=" ".join)
def test_a_piped_screen_is_plain_text_and_its_json_is_json(up, arguments):
    done = run(up, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert not [word for word in STDOUT_WITHOUT_SECRETS if word in done.stdout]
    assert as_json(up, *arguments)


@pytest.mark.parametrize("columns", [80, 120])
def test_no_screen_is_wider_than_its_terminal(up, columns):
    for arguments in (("status",), ("nodes",), ("experts",), ("experts", "--by", "worker"), ("models", "list")):
        shown = on_terminal(up, *arguments, COLUMNS=str(columns), NO_COLOR="1")
        assert "\x1b[3" not in shown, arguments
        shown = re.sub(r"\x1b\[[0-9;]*m", "", shown)
        assert max(len(line.rstrip("\r")) for line in shown.split("\n")) <= columns, arguments


def test_colours_come_on_a_terminal_and_not_with_no_color(up):
    assert "\x1b[" in on_terminal(up, "experts")
    assert "\x1b[4" not in on_terminal(up, "experts", NO_COLOR="1")


def test_the_map_names_every_expert_and_every_worker(up):
    found = as_json(up, "experts")
    assert {(e["layer"], e["index"]) for e in found} == {(layer, i) for layer in range(LAYERS) for i in range(EXPERTS)}
    shown = run(up, "experts", "--by", "worker").stdout
    assert all(f"worker-{number} (" in shown for number in (1, 2, 3))


def test_rows_served_reach_the_map(up):
    assert run(up, "generate", "--raw", "hello", "--max-tokens", "20").returncode == 0
    until(lambda: sum(e["rows"] for e in as_json(up, "experts")) > 0, 15)
    assert "no rows" not in run(up, "experts", "--by", "rows").stdout


def test_explaining_agrees_with_the_placement(up):
    found = as_json(up, "route", "explain", "hello")
    holders = {(e["layer"], e["index"]): sorted(e["worker_ids"]) for e in as_json(up, "experts")}
    told = {
        (layer["layer"], e["index"]): sorted(e["worker_ids"]) for layer in found["layers"] for e in layer["tokens"][0]
    }
    assert told == holders
    assert "".join(found["pieces"]) == "hello"


def test_the_version_of_the_mesh_is_asked_for_and_its_absence_is_no_failure(up, tmp_path):
    assert as_json(up, "version")["server"] == as_json(up, "version")["client"]
    alone = run(up, "version", "--json", EXPERTMESH_SERVER=f"unix:{tmp_path}/none")
    assert (alone.returncode, json.loads(alone.stdout)["server"]) == (0, None)


def test_a_wrong_token_is_one_line_and_code_4_and_the_doctor_says_what_to_do(up):
    done = run(up, "status", "--token", "wrong")
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (4, 1, "")
    told = json.loads(run(up, "doctor", "--json", "--token", "wrong").stdout)
    assert [f["name"] for f in told["findings"] if f["level"] == "fail"] == ["token"]


def test_chat_with_a_pipe_answers_every_line(up):
    done = run(up, "chat", "--json", "--max-tokens", "5", text="one\ntwo\n")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, len(lines)) == (0, 2)
    assert lines[1]["prompt_tokens"] > lines[0]["prompt_tokens"]


def test_ctrl_c_ends_generate_with_130_and_without_a_traceback(up):
    command = [
        sys.executable,
        "-m",
        "expertmesh.cli.main",
        "generate",
        "--raw",
        "x",
        "--max-tokens",
        "0",
        "--stop",
        "\0",
    ]
    process = subprocess.Popen(command[:-2], env=environment(up), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, b"Traceback" in said) == (130, False)


@pytest.mark.slow
def test_a_second_model_is_served_and_taken_away_again(up, tiny_folder):
    served = as_json(up, "models", "serve", str(tiny_folder), "--name", "second")
    assert (served["name"], served["experts"]) == ("second", EXPERT_COUNT)
    assert {model["name"] for model in as_json(up, "models", "list")} == {"tiny", "second"}
    ambiguous = run(up, "generate", "hello")
    assert (ambiguous.returncode, "second" in ambiguous.stderr) == (2, True)
    assert run(up, "generate", "hello", "--model", "second", "--max-tokens", "3").returncode == 0
    assert len(run(up, "experts").stdout.split("tiny: ")) == 2
    assert as_json(up, "models", "unserve", "second") == {"name": "second", "cut_requests": 0}
    assert run(up, "models", "unserve", "second").returncode == 2


@pytest.mark.slow
def test_what_has_no_room_and_a_worker_that_stands_still_are_missed(tiny_folder, folder):
    arguments = ["--model", str(tiny_folder), "--listen", "127.0.0.1:0", "--store", "memory", "--workers", "1"]
    with running_up(folder, [*arguments, "--budget-share", "1"]) as alone:
        assert run(alone, "status").returncode == 0
        crowded = run(alone, "models", "serve", str(tiny_folder), "--name", "second")
        assert (crowded.returncode, "have no room" in crowded.stdout) == (1, True)
        assert run(alone, "models", "unserve", "second").returncode == 0
        os.kill(alone.pids["worker-1"], signal.SIGSTOP)
        until(lambda: run(alone, "status").returncode == 1, 30)
        assert "no worker" in run(alone, "status").stdout
        examined = run(alone, "doctor")
        assert (examined.returncode, "fail" in examined.stdout) == (1, True)
        os.kill(alone.pids["worker-1"], signal.SIGCONT)
        until(lambda: run(alone, "status").returncode == 0, 30)
