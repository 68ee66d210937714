"""Every part of a family's gate counts: with another one in the bundle, the model no longer agrees."""

import json

import pytest

from expertmesh_common.bundle.blobs import Bundle
from models import hf_checkpoints as hf
from parity.agreement import VISIBLE, share_apart
from parity.conftest import IDS

# Softmax over all experts, as they are, where it is of the picked ones alone. Renormalised it would be the same.
SOFTMAX_OVER_ALL = {"scorer": "softmax", "weighting": "score"}

GATES = {
    "renormalising in mixtral": ("mixtral", {"weighting": "score"}),
    "softmax over the picked of granite": ("granitemoe", SOFTMAX_OVER_ALL),
    "softmax over the picked of shared granite": ("granitemoeshared", SOFTMAX_OVER_ALL),
    "softmax over the picked of gpt-oss": ("gpt_oss", SOFTMAX_OVER_ALL),
    "sparse mixer of phimoe": ("phimoe", {"weighting": "softmax"}),
    "groups of deepseek-v2 by their best": ("deepseek_v2", {"groups": {"count": 4, "kept": 2, "score": "top2_sum"}}),
    "groups of deepseek-v3 by their two best": ("deepseek_v3", {"groups": {"count": 4, "kept": 2, "score": "max"}}),
    "sigmoid of deepseek-v3": ("deepseek_v3", {"scorer": "softmax"}),
    "sigmoid of llama 4": ("llama4_text", {"weighting": "softmax"}),
    "weights on llama 4's inputs": ("llama4_text", {"weight_on": "output"}),
}


@pytest.mark.parametrize("name", GATES)
def test_with_another_gate_the_model_disagrees(name: str, checkpoint, imported, started) -> None:
    family, changes = GATES[name]
    folder = checkpoint(family)

    served = started(with_gates(imported(folder), changes))

    assert share_apart(served.prompt_logits(IDS), hf.reference_logits(folder, IDS)) > VISIBLE


def with_gates(bundle: Bundle, changes: dict[str, object]) -> Bundle:
    """The bundle with `changes` in each of its gates."""
    path = bundle.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    gates = [layer["gate"] for layer in manifest["layers"] if layer["gate"]]
    assert gates
    for gate in gates:
        assert any(gate[key] != value for key, value in changes.items())
        gate.update(changes)
    path.write_text(json.dumps(manifest))
    return Bundle(bundle.folder)
