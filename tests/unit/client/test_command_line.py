"""The frame of the command line: exit codes, hints, quiet output."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from expertmesh.cli import failures
from expertmesh.cli.app import build_app
from expertmesh.cli.main import run
from expertmesh_common.errors import CorruptData, Exhausted, MeshError, Unavailable
from unit.client.scripted_mesh import WORDS, breaks_after, whole


@pytest.fixture
def served(serve, monkeypatch):
    def start(*script):
        monkeypatch.setenv("EXPERTMESH_SERVER", serve(*script).address)

    return start


def test_generate_prints_the_answer_and_nothing_else(served, capsys):
    served(whole)
    assert run(["generate", "Capital?"]) == 0
    assert capsys.readouterr() == ("".join(WORDS) + "\n", "")


def test_generate_as_json_has_text_and_token_ids(served, capsys):
    served(whole)
    assert run(["generate", "--raw", "--json", "Capital?"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] == "".join(WORDS)
    assert answer["tokens"] == list(range(100, 107))


def test_an_unreachable_mesh_is_two_lines_with_what_to_do_and_code_3(capsys, tmp_path):
    assert run(["generate", "--server", f"unix:{tmp_path}/none", "x"]) == failures.UNAVAILABLE
    what, advice = capsys.readouterr().err.splitlines()
    assert f"unix:{tmp_path}/none" in what
    assert "last error" not in what
    assert "expertmesh up" in advice


def test_an_unforeseen_error_is_one_line_and_a_traceback_only_when_asked_for(monkeypatch, capsys):
    from expertmesh.cli import version

    def broken(*_, **__):
        raise KeyError("lost")

    monkeypatch.setattr(version, "connect", broken)
    assert run(["version"]) == failures.INTERNAL
    error = capsys.readouterr().err
    assert (error.count("\n"), "KeyError: 'lost'" in error, "EXPERTMESH_DEBUG=1" in error) == (1, True, True)
    monkeypatch.setenv("EXPERTMESH_DEBUG", "1")
    with pytest.raises(KeyError):
        run(["version"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nods"], "Did you mean"),
        (["experts", "--by", "colour"], "'replicas', 'rows', 'worker'"),
        (["generate", "x", "--top-p", "2"], "--top-p"),
        (["chat", "--load", "/no/such/file"], "/no/such/file: No such file"),
        (["chat", "--tls", "/no/such/folder"], "/no/such/folder/ca.pem"),
        (["route", "explain"], "give a text"),
        (["route", "explain", "--rows", "/no/such.npy", "--layer", "0"], "/no/such.npy: No such file"),
        (["models", "serve"], "path"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(arguments, says, capsys, monkeypatch, served):
    served(whole)
    assert run(arguments) == failures.USAGE
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_group_without_a_command_shows_its_help(capsys):
    assert run(["models"]) == failures.USAGE
    assert "unserve" in capsys.readouterr().err


def test_a_file_of_the_user_that_cannot_be_read_is_named_once():
    error = FileNotFoundError(2, "No such file or directory", "talk.json")
    assert failures.code_of(error) == failures.USAGE


def test_a_prompt_may_come_from_a_pipe_and_may_not_be_empty(served, capsys, monkeypatch):
    import io

    served(whole)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Capital?"))
    assert run(["generate"]) == 0
    assert capsys.readouterr().out == "".join(WORDS) + "\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    assert run(["generate"]) == failures.USAGE
    assert "prompt is empty" in capsys.readouterr().err


def test_stats_go_to_standard_error(served, capsys):
    served(whole)
    assert run(["generate", "x", "--stats"]) == 0
    said = capsys.readouterr()
    assert said.out == "".join(WORDS) + "\n"
    assert "3 + 7 tokens, first after 12 ms" in said.err


def test_a_number_that_is_none_becomes_null_in_json(capsys):
    from expertmesh.cli.output import print_json

    print_json({"margins": (float("inf"), float("nan"), 1.5)})
    assert json.loads(capsys.readouterr().out) == {"margins": [None, None, 1.5]}


def test_a_server_bug_is_code_1_without_a_traceback(served, capsys):
    import grpc

    served(breaks_after(0, grpc.StatusCode.INTERNAL))
    assert run(["generate", "x"]) == failures.INTERNAL
    assert capsys.readouterr().err == "expertmesh: scripted failure\n"


def test_a_wrong_flag_is_code_2(capsys):
    assert run(["nodes", "--no-such-flag"]) == failures.USAGE
    assert "--no-such-flag" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [(Unavailable("x"), 3), (Exhausted("x"), 6), (CorruptData("x"), 7), (MeshError("x"), 1)],
)
def test_errors_of_the_services_end_commands_with_their_codes(error, code):
    status = failures.status_of(error)
    assert status is not None
    assert failures.exit_code(status) == code


def test_help_lists_the_commands_of_every_installed_package():
    shown = CliRunner().invoke(build_app(), ["--help"]).output
    expected = ("generate", "nodes", "experts", "version", "up", "controller", "worker", "model")
    assert [name for name in expected if f"\n  {name} " not in shown] == []


def test_a_command_whose_extra_is_missing_says_what_to_install():
    blocked = "import sys; sys.modules['typer'] = None;from expertmesh.cli.main import run; sys.exit(run(['version']))"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=False)
    assert done.returncode == failures.USAGE
    assert "pip install 'expertmesh[cli]'" in done.stderr


def test_a_group_whose_extra_is_missing_says_what_to_install():
    blocked = (
        "import sys; sys.modules['expertmesh_worker.cli'] = None;"
        "from expertmesh.cli.main import run; sys.exit(run(['worker', '--join', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=False)
    assert done.returncode == failures.USAGE
    assert "pip install 'expertmesh[worker]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_early_is_no_error(served):
    script = "from expertmesh.cli.main import main; main()"
    piped = subprocess.run(
        ["/bin/sh", "-c", f'"{sys.executable}" -c "{script}" --help | head -1'],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in piped.stderr
    assert "BrokenPipe" not in piped.stderr
