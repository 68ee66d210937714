"""Whether a config's sizes fit each other; each check raises `SourceError` with the key that does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from expertmesh_forge.importing.config import CheckpointConfig

__all__ = ["attention_kinds", "check_groups", "check_heads", "check_picks", "of_every_layer", "quantised_by"]

_Any = TypeVar("_Any")
_KINDS = ("full_attention", "sliding_attention")


def check_heads(config: CheckpointConfig, hidden: int, heads: int, kv_heads: int) -> None:
    """Heads share the hidden size unless they have a size of their own, and key-value heads are shared by as many."""
    if not config.has("head_dim") and hidden % heads:
        raise config.wrong("hidden_size", f"a multiple of num_attention_heads {heads}, as there is no head_dim")
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", f"a divisor of num_attention_heads {heads}")


def check_picks(config: CheckpointConfig, picked_key: str, experts_key: str) -> None:
    """A row goes to some of the experts, or to all of them."""
    experts = config.size(experts_key)
    if config.size(picked_key) > experts:
        raise config.wrong(picked_key, f"at most {experts_key} {experts}")


def check_groups(config: CheckpointConfig, experts: int, picked: int) -> None:
    """Groups are equal parts of the experts, and those that are kept have enough of them."""
    count, kept = config.size("n_group"), config.size("topk_group")
    if experts % count:
        raise config.wrong("n_group", f"a divisor of n_routed_experts {experts}")
    if kept > count:
        raise config.wrong("topk_group", f"at most n_group {count}")
    if kept * (experts // count) < picked:
        raise config.wrong("topk_group", f"enough groups of {experts // count} to pick {picked} experts from")


def quantised_by(config: CheckpointConfig) -> str | None:
    """By which method a config says that its weights are quantised; None if it says that they are not."""
    if not config.has("quantization_config"):
        return None
    about = config.section("quantization_config")
    return about.text("quant_method") if about.has("quant_method") else "a method that it does not name"


def of_every_layer(config: CheckpointConfig, key: str, found: Sequence[_Any], layers: int) -> Sequence[_Any]:
    """A list that says something of every layer, or is empty."""
    if found and len(found) != layers:
        raise config.wrong(key, f"a list of num_hidden_layers {layers} entries")
    return found


def attention_kinds(config: CheckpointConfig, layers: int) -> Sequence[str]:
    """Which layers have a window, where the config says it."""
    kinds = of_every_layer(config, "layer_types", config.texts("layer_types"), layers)
    if not set(kinds) <= set(_KINDS):
        raise config.wrong("layer_types", f"a list of {' and '.join(_KINDS)}")
    return kinds
