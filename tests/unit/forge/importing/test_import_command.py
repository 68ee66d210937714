"""`expertmesh model import` as a person runs it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from expertmesh.cli.failures import CORRUPT, DONE, INTERRUPTED, OVERLOADED, USAGE
from expertmesh.cli.main import run
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_forge.importing.resume import leftovers
from models.altered_checkpoints import alter_config


def importing(folder: Path, out: Path, *options: str) -> list[str]:
    return ["model", "import", str(folder), "--out", str(out), *options]


def test_the_result_is_one_line_and_the_bundle_verifies(checkpoint, tmp_path, capsys) -> None:
    folder = checkpoint("qwen2_moe")

    assert run(importing(folder, tmp_path / "b", "--precisions", "fp32, int4", "--name", "tiny")) == DONE
    out = capsys.readouterr().out
    assert out == f"{tmp_path / 'b'}: tiny (qwen2_moe), 12 experts in 2 of 4 layers, fp32, int4\n"
    assert run(["model", "verify", str(tmp_path / "b")]) == DONE


def test_what_limits_a_model_is_said(checkpoint, tmp_path, capsys) -> None:
    assert run(importing(checkpoint("llama4_text"), tmp_path / "b", "--precisions", "fp32")) == DONE
    assert "note: texts of up to 99 of 256 tokens: up to where its attention has one temperature" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precisions", "int3"], "--precisions 'int3': allowed are fp32, fp16, bf16, int8, int4"),
        (["--precisions", ","], "--precisions ','"),
        (["--name", "a b"], "the name 'a b' is not possible"),
        (["--context-tokens", "1000"], "a context of 1000 tokens is too long: up to 256"),
        (["--context-tokens", "0"], "--context-tokens"),
    ],
)
def test_wrong_options_end_with_a_usage_error(checkpoint, tmp_path, capsys, options, words: str) -> None:
    assert run(importing(checkpoint("mixtral"), tmp_path / "b", *options)) == USAGE
    assert words in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_an_unknown_family_is_a_usage_error_that_says_what_is_supported(mixtral, tmp_path, capsys) -> None:
    alter_config(mixtral, model_type="rwkv")

    assert run(importing(mixtral, tmp_path / "b")) == USAGE
    assert "model_type 'rwkv' is not supported; supported: deepseek_v2" in capsys.readouterr().err


def test_a_place_that_is_no_bundle_is_refused(checkpoint, tmp_path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letters").write_text("dear")

    assert run(importing(checkpoint("mixtral"), tmp_path / "b")) == CORRUPT


def test_ctrl_c_ends_with_130_says_how_to_go_on_and_the_next_run_does(mixtral, tmp_path, capsys) -> None:
    code, error = interrupted_run(mixtral, tmp_path / "b")

    assert code == INTERRUPTED
    assert error == ("interrupted: the same command goes on with the layers that are finished, --fresh starts over\n")
    assert not (tmp_path / "b").exists()
    assert run(importing(mixtral, tmp_path / "b", "--precisions", "fp32")) == DONE
    assert "went on with an earlier import: 2 segments were finished" in capsys.readouterr().out
    assert Bundle(tmp_path / "b").manifest.family == "mixtral"
    assert leftovers(tmp_path / "b") == []


def test_unfinished_imports_with_other_settings_are_named(mixtral, tmp_path, capsys) -> None:
    interrupted_run(mixtral, tmp_path / "b")

    assert run(importing(mixtral, tmp_path / "b", "--precisions", "int4")) == DONE
    assert f"was not finished; delete {leftovers(tmp_path / 'b')[0]} if it is not wanted" in capsys.readouterr().out
    assert run(importing(mixtral, tmp_path / "b", "--precisions", "int4", "--fresh")) == DONE
    assert "note" not in capsys.readouterr().out


_INTERRUPTED = """
import os, signal, sys
from expertmesh.cli.main import run
from expertmesh_forge.importing import importer, streaming
put, written = streaming.put_tensors, []
def interrupting(store, tensors):
    written.append(1)
    if len(written) == 22:
        os.kill(os.getpid(), signal.SIGINT)
    return put(store, tensors)
streaming.put_tensors = interrupting
sys.exit(run(sys.argv[1:]))
"""


def interrupted_run(folder: Path, out: Path) -> tuple[int, str]:
    """A run that gets SIGINT while it writes the third layer."""
    ran = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, *importing(folder, out, "--precisions", "fp32")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode != -signal.SIGINT
    return ran.returncode, ran.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a Linux kernel")
def test_a_full_disk_is_told_from_a_mistake(mixtral, tmp_path, capsys, monkeypatch) -> None:
    from expertmesh_forge.importing import streaming

    def full(store, tensors):
        with Path("/dev/full").open("wb", buffering=0) as disk:
            disk.write(b"x")

    monkeypatch.setattr(streaming, "put_tensors", full)

    assert run(importing(mixtral, tmp_path / "b")) == OVERLOADED
    assert "no space is left on the disk" in capsys.readouterr().err
