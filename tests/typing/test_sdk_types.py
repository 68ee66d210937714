"""The SDK's types, as a caller's strict type checker sees them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import expertmesh

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_strict_type_checker_accepts_right_uses_and_refuses_wrong_ones(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--cache-dir", str(tmp_path),
         "--follow-imports", "silent", str(Path(__file__).with_name("sdk_surface.py"))],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=170,
        env={**os.environ, "MYPYPATH": f"{ROOT}/client:{ROOT}/protos/generated"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_says_that_it_is_typed():
    assert (Path(expertmesh.__file__).with_name("py.typed")).is_file()
