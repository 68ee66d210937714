"""What a model's users were promised against what they saw: judged by the SDK, shown by the command line."""

from __future__ import annotations

import pytest

from expertmesh.cli.overview import Seen, overview
from expertmesh.cli.targets import target_lines, targets_word
from expertmesh.inspecting import MeshFacts
from expertmesh.operating import TargetState, model_status
from expertmesh.types import ServedModel
from expertmesh_api.v1 import operations_pb2


def status(ttft_ms=0.0, token_ms=0.0, **promised):
    sla = operations_pb2.SlaTarget(window_s=60, **promised)
    return model_status(operations_pb2.ModelStatus(name="m", sla=sla, ttft_p95_ms=ttft_ms, token_p95_ms=token_ms))


@pytest.mark.parametrize(("seen_ms", "state"), [(299.0, "met"), (300.0, "met"), (300.1, "missed"), (0.0, "unseen")])
def test_a_target_is_met_missed_or_not_seen(seen_ms, state):
    (target,) = status(seen_ms, ttft_p95_ms=300).targets
    assert target == TargetState("ttft_p95_ms", 300, seen_ms or None, state)


def test_what_was_not_promised_is_not_judged():
    assert status(5, 5).targets == ()
    assert [target.name for target in status(5, 5, token_p95_ms=1).targets] == ["token_p95_ms"]
    assert targets_word(status(5, 5)) == "-"


@pytest.mark.parametrize(
    ("ttft_ms", "token_ms", "word"), [(1, 1, "met"), (1, 99, "missed"), (1, 0, "unseen"), (0, 99, "missed")]
)
def test_one_word_for_all_targets_is_the_worst(ttft_ms, token_ms, word):
    assert targets_word(status(ttft_ms, token_ms, ttft_p95_ms=10, token_p95_ms=10)) == word


def test_lines_say_what_was_promised_and_what_was_seen():
    assert target_lines(status(512.34, 0, ttft_p95_ms=300, token_p95_ms=40)) == (
        "missed: time to the first token p95 512.3 ms, at most 300 ms, over 60 s",
        "unseen: time between tokens p95 at most 40 ms, no answer in the last 60 s",
    )


def test_the_status_screen_tells_a_missed_target_and_the_mesh_is_ready_all_the_same():
    served = ServedModel("m", "llama", "fp32", 512, "d", True)
    given = Seen(MeshFacts("0.1.0", (1, 4), None, 0), (served,), (), (), (status(512, ttft_p95_ms=300),))
    (model,) = overview("x:1", given).models
    assert [target.state for target in model.targets] == ["missed"]
    assert model.target_lines[0].startswith("missed: time to the first token p95 512.0 ms")
    assert all("target" not in sentence for sentence in overview("x:1", given).missing)
