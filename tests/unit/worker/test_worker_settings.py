"""Sizes, addresses and flags are read as people write them, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from expertmesh_common.errors import InvalidInput
from expertmesh_worker.settings import WorkerSettings, advertised_host, listen_address, parse_bytes, split_address


def settings(**changes):
    return WorkerSettings(**{"join": "127.0.0.1:7070", "worker_id": "w", "cache": Path("cache"), **changes})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("96MB", 96_000_000), ("1GiB", 2**30), ("1.5 gb", 1_500_000_000), ("4096", 4096), (" 10kib ", 10240), ("7B", 7)],
)
def test_sizes_are_read_with_and_without_units(text, expected):
    assert expected == parse_bytes(text)


@pytest.mark.parametrize("text", ["", "much", "-1MB", "0", "1TBx", "MB", "1e9", "0.1"])
def test_other_sizes_are_refused(text):
    with pytest.raises(InvalidInput, match="is not valid: write bytes or a number with"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("address", "expected"), [("host:80", ("host", 80)), ("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:9", ("::1", 9))]
)
def test_addresses_are_split(address, expected):
    assert expected == split_address(address)


@pytest.mark.parametrize("address", ["host", ":80", "host:", "host:http", "host:65536"])
def test_other_addresses_are_refused(address):
    with pytest.raises(InvalidInput, match="write host:port"):
        split_address(address)


def test_a_worker_listens_on_the_side_that_faces_its_controller():
    assert listen_address(settings()) == "127.0.0.1:0"
    assert listen_address(settings(join="unix:/run/mesh.sock")) == "127.0.0.1:0"
    assert listen_address(settings(listen="0.0.0.0:7171")) == "0.0.0.0:7171"


def test_a_wildcard_is_not_advertised():
    assert advertised_host(settings(), "0.0.0.0:7171") == "127.0.0.1"
    assert advertised_host(settings(), "10.1.2.3:7171") == "10.1.2.3"
    assert advertised_host(settings(advertise="worker-1.mesh"), "0.0.0.0:7171") == "worker-1.mesh"


def test_a_controller_whose_name_does_not_resolve_is_named():
    with pytest.raises(InvalidInput, match=r"nowhere\.invalid cannot be reached.*--join"):
        listen_address(settings(join="nowhere.invalid:7070"))
