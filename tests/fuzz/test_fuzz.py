"""Ten thousand inputs, no crash, no hang, nothing but declared statuses; `make fuzz` runs a million of the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from expertmesh_common.garbled import not_utf8
from fuzz.doors import Doors, methods, opened
from fuzz.targets import Target, bytes_targets, door_targets
from models.tiny_bundle import make_tiny_bundle

INPUTS = 10_000


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    folder: Path = tmp_path_factory.mktemp("f")
    with opened(folder, make_tiny_bundle(folder / "tiny")) as found:
        yield found


def inputs_of(target: Target) -> int:
    return max(1, round(INPUTS * target.share))


@pytest.mark.parametrize("target", bytes_targets(), ids=lambda target: target.name)
def test_no_bytes_surprise_the_expert_channel(target: Target) -> None:
    assert target.run(inputs_of(target)) >= inputs_of(target) / 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_message_brings_a_method_of_the_mesh_to_an_undeclared_end(doors: Doors) -> None:
    targets = door_targets(doors)
    for target in targets:
        target.run(inputs_of(target))
    assert doors.alive()
    log = (doors.up.ready_file.parent / "logs" / "controller.log").read_text()
    assert "unforeseen error" not in log
    assert "Traceback" not in log


def test_every_method_of_the_api_is_fuzzed_and_all_shares_make_one() -> None:
    class Nowhere:
        pass

    targets = [*bytes_targets(), *door_targets(Nowhere())]
    assert {method.full_name for method in methods()} <= {target.name for target in targets}
    assert sum(target.share for target in targets) == pytest.approx(1.0)


def test_text_that_is_no_utf8_is_found_by_its_path() -> None:
    from expertmesh_api.v1 import inference_pb2 as pb

    sound = pb.GenerateRequest(model="m", chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="abc")]))
    data = sound.SerializeToString()
    assert not_utf8(data, pb.GenerateRequest.DESCRIPTOR) == ""
    assert not_utf8(data.replace(b"abc", b"a\xffc"), pb.GenerateRequest.DESCRIPTOR) == "chat.messages.content"
