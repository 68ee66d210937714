"""Every command tells how it is used: examples that work, a completion that finds it, codes that are written down."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from expertmesh.cli import failures
from expertmesh.cli.app import build_app
from expertmesh.cli.examples import EXAMPLES
from expertmesh.cli.main import run

GUIDE = Path(__file__).parents[3] / "docs/guides/cli.md"
PROGRAM = typer.main.get_command(build_app())


def commands(command, path=()):
    """(path, command) of everything that can be run."""
    found = getattr(command, "commands", None)
    if found is None:
        return [(" ".join(path), command)]
    return [entry for name, child in found.items() for entry in commands(child, (*path, name))]


ALL = dict(commands(PROGRAM))


def test_every_command_has_examples_and_no_example_is_of_a_command_that_is_gone():
    assert set(ALL) == set(EXAMPLES)


@pytest.mark.parametrize("path", sorted(ALL))
def test_help_has_a_purpose_and_the_examples(path, capsys):
    assert run([*path.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    for line in ("Examples:", *EXAMPLES.get(path, ())):
        assert line in shown


@pytest.mark.parametrize("example", [e for lines in EXAMPLES.values() for e in lines])
def test_an_example_is_what_its_command_takes(example, monkeypatch):
    for name in list(os.environ):
        if name.startswith("EXPERTMESH_"):
            monkeypatch.delenv(name)
    words = shlex.split(example.rpartition("| ")[2])
    assert words.pop(0) == "expertmesh"
    command, used = PROGRAM, []
    while hasattr(command, "commands"):
        used.append(words.pop(0))
        command = command.commands[used[-1]]
    context = command.make_context(used[-1], words)
    context.close()


def test_the_list_of_commands_fits_80_columns_and_cuts_none_of_ours_short(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines()) <= 80
    ours = ("generate", "chat", "status", "nodes", "experts", "doctor", "version", "models", "route")
    lines = [line for line in shown.splitlines() if line.split()[:1] and line.split()[0] in ours]
    assert len(lines) == len(ours)
    assert not [line for line in lines if line.endswith("...")]


def complete(words: str, shell: str = "bash") -> list[str]:
    environment = {
        **os.environ, "_EXPERTMESH_COMPLETE": f"complete_{shell}", "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - (not words.endswith(" "))),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "from expertmesh.cli.main import main; main()"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.stderr
    return done.stdout.split()


def test_the_shell_completes_commands_flags_and_choices():
    assert {"models", "model"} <= set(complete("expertmesh mod"))
    assert complete("expertmesh models un") == ["unserve"]
    assert complete("expertmesh experts --mo") == ["--model"]
    assert complete("expertmesh experts --by r") == ["replicas", "rows"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_each_shell_is_shown(shell):
    done = subprocess.run(
        [sys.executable, "-c", "from expertmesh.cli.main import main; main()"],
        env={**os.environ, "_EXPERTMESH_COMPLETE": f"source_{shell}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert f"_EXPERTMESH_COMPLETE=complete_{shell}" in done.stdout.replace('"', "")


def test_the_exit_codes_of_the_guide_are_those_of_the_program():
    written = {int(code) for code in re.findall(r"^\| (\d+) \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)}
    known = {value for name, value in vars(failures).items() if name.isupper() and isinstance(value, int)}
    assert written == known


def test_the_guide_names_every_command():
    text = GUIDE.read_text(encoding="utf-8")
    assert [path for path in ALL if f"`expertmesh {path}" not in text] == []
