"""Sockets fit their paths wherever TMPDIR points."""

from __future__ import annotations

import tempfile

import pytest

from expertmesh_common.socket_folders import LONGEST_ROOT, socket_root


def test_a_short_temporary_folder_is_used_as_it_is(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/var/short")
    assert socket_root() == "/var/short"


@pytest.mark.parametrize("extra", [1, 60])
def test_a_deep_temporary_folder_is_left_for_a_short_one(monkeypatch, extra):
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * (LONGEST_ROOT + extra - 1))
    assert len(socket_root()) < LONGEST_ROOT
