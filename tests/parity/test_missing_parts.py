"""Parts of a family that are no data of a checkpoint count: transformers without one of them no longer agrees."""

from collections.abc import Callable
from typing import Any

import pytest

from models import hf_checkpoints as hf
from parity.agreement import VISIBLE, share_apart
from parity.conftest import IDS


def nothing_done(rows: Any) -> Any:
    return rows


# A module of every layer of transformers' model, and what it has in place of the part.
PARTS: dict[str, tuple[str, str, dict[str, float | Callable[[Any], Any]]]] = {
    "clamp of gpt-oss": ("gpt_oss", "mlp.experts", {"limit": 1e9}),
    "alpha of gpt-oss": ("gpt_oss", "mlp.experts", {"alpha": 1.0}),
    "normalising qwen3's queries": ("qwen3_moe", "self_attn.q_norm", {"forward": nothing_done}),
    "normalising qwen3's keys": ("qwen3_moe", "self_attn.k_norm", {"forward": nothing_done}),
    "normalising olmoe's queries": ("olmoe", "self_attn.q_norm", {"forward": nothing_done}),
    "normalising olmoe's keys": ("olmoe", "self_attn.k_norm", {"forward": nothing_done}),
    "normalising deepseek-v2's latent": ("deepseek_v2", "self_attn.kv_a_layernorm", {"forward": nothing_done}),
    "normalising deepseek-v3's latent": ("deepseek_v3", "self_attn.kv_a_layernorm", {"forward": nothing_done}),
}


@pytest.mark.parametrize("name", PARTS)
def test_without_a_part_transformers_disagrees(name: str, checkpoint, serve) -> None:
    family, ending, changes = PARTS[name]
    folder = checkpoint(family)
    reference = hf.load_reference(folder)
    hit = [module for at, module in reference.named_modules() if at.endswith(ending)]
    assert hit
    for module in hit:
        for attribute, value in changes.items():
            assert hasattr(module, attribute)
            setattr(module, attribute, value)

    got = serve(folder).prompt_logits(IDS)

    assert share_apart(got, hf.logits_of(reference, IDS)) > VISIBLE
