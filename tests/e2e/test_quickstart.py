"""The quickstart does what it says: its blocks run against a real mesh, each as a program of its own."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.running import RunningUp, running_up

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "quickstart.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^\$ expertmesh (.*)$", PAGE, re.MULTILINE)
TITLES = re.findall(r"^## (\d+\. .*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def up(tiny_folder, tmp_path_factory) -> Iterator[RunningUp]:
    (started,) = re.findall(r"^expertmesh up (.*)$", PAGE, re.MULTILINE)
    arguments = [*shlex.split(started), "--model", str(tiny_folder), "--listen", "127.0.0.1:0"]
    with running_up(tmp_path_factory.mktemp("q"), arguments) as running:
        yield running


def run(up: RunningUp, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EXPERTMESH_ADDRESS": ",".join(up.addresses)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_page_has_programs_and_commands():
    assert len(PROGRAMS) == 6
    assert len(TITLES) == 7
    assert len(COMMANDS) == 2


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=TITLES[1:])
def test_a_program_of_the_quickstart_runs(up: RunningUp, program: str):
    done = run(up, "-W", "error", "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_quickstart_runs(up: RunningUp, command: str):
    done = run(up, "-m", "expertmesh.cli.main", *shlex.split(command))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
def test_the_mesh_prints_the_variable_that_the_page_exports(up: RunningUp):
    assert f"export EXPERTMESH_ADDRESS={','.join(up.addresses)}" in up.said


@pytest.mark.slow
def test_the_words_of_the_page_come_true(up: RunningUp):
    wrong = next(program for program in PROGRAMS if "InvalidRequest" in program)
    assert run(up, "-c", wrong).stdout.startswith("change the request: max_tokens is 10000000")
    likely = next(program for program in PROGRAMS if "perplexity" in program)
    assert "perplexity" in run(up, "-c", likely).stdout
