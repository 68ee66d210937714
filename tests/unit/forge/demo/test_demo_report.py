"""The demo's report says what happened, and calls nothing exact that is not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from expertmesh.types import Completion, Node, Token
from expertmesh_common.errors import Unavailable
from expertmesh_forge.checking import Difference, ReferenceCheck
from expertmesh_forge.demo import bundle as demo_bundle
from expertmesh_forge.demo.asking import Answer, tokens_per_s
from expertmesh_forge.demo.mesh import running_mesh
from expertmesh_forge.demo.report import make_report, verdict, write_report

KEYS = {
    "text", "tokens", "ttft_ms", "tokens_per_s", "exact", "ties", "precision", "active_share", "model_expert_bytes",
    "reference_tokens", "workers",
}  # fmt: skip


def answer(*ids: int) -> Answer:
    completion = Completion(
        text="Paris", tokens=tuple(Token(i, t, "x") for i, t in enumerate(ids)), finish_reason="stop", prompt_tokens=2,
        completion_tokens=len(ids), ttft_ms=1.0, total_ms=2.0, queue_ms=0.0, precision="fp32", numerics="exact",
        active_share=0.8, lossy=(), request_id="r",
    )  # fmt: skip
    return Answer((1, 2), completion, 12.3456, 7.0)


NODE = Node("worker-1", "g", "live", 2, 10**9, 600, 500, 4, 99, 1.0, 5, ("cpu",), ())


def difference(position: int, *, tie: bool) -> Difference:
    return Difference(position, emitted=8, expected=7, logit_margin=0.0, router_margin=1.0, tie=tie)


def report(ids, *differences, reference=(7, 7, 7)):
    return make_report(answer(*ids), ReferenceCheck(reference, differences, 0), [NODE], 1000)


def test_the_file_has_exactly_the_promised_keys(tmp_path):
    write_report(report((7, 7, 7)), tmp_path / "new" / "run-report.json")
    written = json.loads((tmp_path / "new" / "run-report.json").read_text())
    assert set(written) == KEYS
    assert written["workers"] == [
        {"id": "worker-1", "experts": 4, "expert_bytes": 500, "budget_bytes": 600, "rows": 99}
    ]
    assert (written["tokens"], written["reference_tokens"]) == ([7, 7, 7], [7, 7, 7])
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "run-report.json"]


def test_equal_tokens_are_exact():
    found = report((7, 7, 7))
    assert (found.exact, found.ties) == (True, ())
    assert verdict(found).startswith("EXACT: all 3 tokens")


def test_a_tie_is_exact_and_reported():
    found = report((7, 8, 7), difference(1, tie=True))
    assert (found.exact, found.ties) == (True, (1,))
    assert "1 of them a tie" in verdict(found)


def test_one_wrong_token_is_not_exact_and_is_named():
    found = report((8, 8, 7), difference(0, tie=True), difference(1, tie=False))
    assert not found.exact
    assert verdict(found) == "NOT EXACT: token 1 is 8, the plain dense reference gives 7"


def test_no_answer_at_all_is_not_exact():
    found = report((), reference=())
    assert not found.exact
    assert verdict(found).startswith("FAILED")


def test_the_rate_counts_intervals_not_tokens():
    assert tokens_per_s([10.0, 10.5, 11.0]) == pytest.approx(2.0)
    assert tokens_per_s([10.0]) == tokens_per_s([]) == 0.0


def test_the_fingerprint_changes_with_the_options_and_with_the_code(tmp_path, monkeypatch):
    weights = tmp_path / "w.gguf"
    weights.write_bytes(b"weights")
    code = tmp_path / "code.py"
    code.write_text("a = 1")
    monkeypatch.setattr(demo_bundle, "_our_code", lambda: [code])
    request = replace(demo_bundle.demo_request(tmp_path), source=str(weights))
    first = demo_bundle.fingerprint(request)
    assert demo_bundle.fingerprint(request) == first
    assert demo_bundle.fingerprint(replace(request, window_tokens=64)) != first
    code.write_text("a = 2")
    assert demo_bundle.fingerprint(request) != first


def test_a_bundle_is_current_only_when_whole_and_made_from_the_same(tmp_path):
    assert not demo_bundle.is_current(tmp_path, "abc")
    (tmp_path / "fingerprint").write_text("abc\n")
    assert not demo_bundle.is_current(tmp_path, "abc")
    (tmp_path / "manifest.json").write_text("{}")
    assert demo_bundle.is_current(tmp_path, "abc")
    assert not demo_bundle.is_current(tmp_path, "abd")


def test_a_mesh_that_cannot_start_says_what_it_said(tmp_path):
    with pytest.raises(Unavailable, match="no model bundle in"), running_mesh(tmp_path / "none", 3, "fp32", tmp_path):
        pytest.fail("it must not come to this")
