"""Where the further gateways of `up` listen, and what they are told."""

from __future__ import annotations

import socket
from pathlib import Path

from expertmesh_controller.local.gateways import dialled, further_doors, further_listens, gateway_arguments
from expertmesh_controller.local.reaching import free_port


def test_one_gateway_needs_no_further_address():
    assert further_listens("127.0.0.1:7070", 1) == ()


def test_further_gateways_take_the_next_ports_or_any_free_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        (second,) = further_listens(f"127.0.0.1:{port - 1}", 2)
        assert second.startswith("127.0.0.1:")
        assert second != f"127.0.0.1:{port}"


def test_ports_beyond_the_last_one_are_no_ports():
    found = further_listens("127.0.0.1:65535", 3)
    assert len(set(found)) == 2
    assert all(0 < int(listen.rpartition(":")[2]) <= 65535 for listen in found)


def test_unix_sockets_stand_beside_each_other():
    assert further_listens("unix:/run/mesh.sock", 3) == ("unix:/run/mesh.sock.2", "unix:/run/mesh.sock.3")


def test_every_further_gateway_has_an_openai_door_on_a_port_of_its_own():
    first = f"127.0.0.1:{free_port('127.0.0.1')}"
    door = f"127.0.0.1:{int(first.rpartition(':')[2]) - 1}"  # its successors would be what the gateways listen on
    listens = further_listens(first, 4, besides=(door,))
    doors = further_doors(door, listens, first)
    assert len({first, door, *listens, *doors}) == 8
    assert all(found is not None and found.startswith("127.0.0.1:") for found in doors)


def test_no_door_at_the_controller_is_no_door_anywhere():
    assert further_doors(None, ("127.0.0.1:7071", "127.0.0.1:7072"), "127.0.0.1:7070") == (None, None)


def test_doors_stand_beside_a_unix_socket_too():
    doors = further_doors("127.0.0.1:7080", ("unix:/run/g.2",), "unix:/run/g")
    assert [door is not None and door.startswith("127.0.0.1:") for door in doors] == [True]


def test_this_machine_dials_loopback():
    assert dialled("0.0.0.0:7071") == "127.0.0.1:7071"
    assert dialled("unix:/run/g") == "unix:/run/g"


def test_a_gateway_finds_the_bundles_of_this_machine():
    port = free_port("127.0.0.1")
    arguments = gateway_arguments(
        2, f"127.0.0.1:{port}", None, "127.0.0.1:7070", (("", Path("/a")), ("named", Path("/b")))
    )
    assert arguments[:3] == ("gateway", "--join", "127.0.0.1:7070")
    assert arguments[5:7] == ("--http-listen", "off")
    assert arguments[-4:] == ("--model", "/a", "--model", "/b")
