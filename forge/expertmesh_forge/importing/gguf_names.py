"""Tensors of a GGUF file under the names that Hugging Face gives them.

A stack of experts becomes one tensor per expert: a slice of the file, so that no more than one is ever read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from expertmesh_forge.dense_model import Floats
from expertmesh_forge.errors import BadWeights
from expertmesh_forge.gguf_reader import unpermute_rows
from expertmesh_forge.gguf_tensor import GgufTensor

__all__ = ["Held", "Naming", "hugging_face_names", "require_tensors"]

_BLOCK = re.compile(r"blk\.(?P<layer>\d+)\.(?P<part>\w+?)(?:\.(?P<expert>\d+))?\.(?P<kind>weight|bias)")
_STACK = re.compile(r"ffn_(gate|up|down)_exps")
_ONE_EXPERT = re.compile(r"ffn_(gate|up|down)")
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
_OTHERS = {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}
_EXPERT_PARTS = ("gate", "up", "down")


@dataclass(frozen=True, slots=True)
class Naming:
    """How a family calls its block and its experts' gate, up and down.

    `needed` are the file's own names for what every MoE layer has beside what all families have. `interleaved` says
    that Q and K rows lie in the order of neighbours that turn together.
    """

    block: str
    experts: tuple[str, str, str]
    needed: tuple[str, ...] = ()
    interleaved: bool = False

    def needing(self, *names: str) -> Naming:
        return replace(self, needed=names)


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor of the file; `interleaved_heads` is how many heads' rows must be put in order, 0 for none."""

    tensor: GgufTensor
    interleaved_heads: int = 0

    def read(self) -> Floats:
        values = self.tensor.read()
        return unpermute_rows(values, self.interleaved_heads) if self.interleaved_heads else values


def hugging_face_names(tensors: Mapping[str, GgufTensor], naming: Naming, heads: int, kv_heads: int) -> dict[str, Held]:
    """Every tensor by its name in a folder; one that no folder has keeps its own."""
    rotated = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads} if naming.interleaved else {}
    named: dict[str, Held] = {}
    for tensor in tensors.values():
        for name, one in _named(tensor, naming):
            turned = next((count for part, count in rotated.items() if name.endswith(f".{part}.weight")), 0)
            named[name] = Held(one, turned)
    return named


def require_tensors(file: Path, tensors: Mapping[str, GgufTensor], naming: Naming, layers: int, experts: int) -> None:
    """Raise `BadWeights` with the file's own name for the first tensor that is missing, or stack that is too low."""
    for name in ("token_embd.weight", "output_norm.weight", *_needed_names(tensors, naming, layers)):
        if name not in tensors:
            raise BadWeights(f"{file}: tensor {name} is missing; the file is incomplete, download it again")
        found = tensors[name]
        if "_exps." in name and (len(found.shape) != 3 or found.shape[0] != experts):
            raise BadWeights(
                f"{found.file}: tensor {name} has shape {list(found.shape)}, not one matrix for each of "
                f"{experts} experts; get the file from its publisher again"
            )


def _needed_names(tensors: Mapping[str, GgufTensor], naming: Naming, layers: int) -> Iterator[str]:
    for layer in range(layers):
        parts = [*_ATTENTION]
        if f"blk.{layer}.ffn_gate.weight" in tensors:
            parts += ["ffn_up", "ffn_down"]
        else:
            parts += [*naming.needed, "ffn_gate_inp"]
            single = f"blk.{layer}.ffn_gate.0.weight" in tensors
            parts += [f"ffn_{part}.0" if single else f"ffn_{part}_exps" for part in _EXPERT_PARTS]
        yield from (f"blk.{layer}.{part}.weight" for part in parts)


def _named(tensor: GgufTensor, naming: Naming) -> Iterator[tuple[str, GgufTensor]]:
    found = _BLOCK.fullmatch(tensor.name)
    if found is None:
        yield _OUTSIDE.get(tensor.name, tensor.name), tensor
        return
    layer, part = f"model.layers.{found['layer']}", found["part"]
    stack, one = _STACK.fullmatch(part), _ONE_EXPERT.fullmatch(part)
    if found["expert"] is not None and one is not None:  # as early files hold them
        yield f"{layer}.{_expert_name(naming, found['expert'], one[1])}.{found['kind']}", tensor
    elif stack is not None and found["kind"] == "weight" and len(tensor.shape) == 3:
        for index in range(tensor.shape[0]):
            yield f"{layer}.{_expert_name(naming, index, stack[1])}.weight", tensor.item(index)
    else:
        name = _name_in_layer(part, naming)
        whole = _as_matrix(tensor) if part == "ffn_gate_inp_shexp" else tensor
        yield (f"{layer}.{name}.{found['kind']}" if name else tensor.name), whole


def _name_in_layer(part: str, naming: Naming) -> str | None:
    return f"{naming.block}.gate" if part == "ffn_gate_inp" else (_ATTENTION | _OTHERS).get(part)


def _expert_name(naming: Naming, index: int | str, part: str) -> str:
    return f"{naming.block}.experts.{index}.{naming.experts[_EXPERT_PARTS.index(part)]}"


def _as_matrix(tensor: GgufTensor) -> GgufTensor:
    """The format drops an axis of size 1."""
    return replace(tensor, shape=(1, *tensor.shape)) if len(tensor.shape) == 1 else tensor
