"""Scaled rotary positions of a dense GGUF file.

Llama 3.1 and later stretch each pair of values by a factor of its own; a GGUF file holds these factors as the tensor
`rope_freqs.weight`. Every other way to scale is refused by its name.
"""

from __future__ import annotations

import numpy as np

from expertmesh_common.bundle.parts import Rope
from expertmesh_forge.errors import BadWeights, UnsupportedModel
from expertmesh_forge.gguf_file import GgufFile

__all__ = ["read_rope", "refuse_other_scalings"]

_FACTORS = "rope_freqs.weight"
_OTHER_FACTORS = ("rope_freqs", "rope_factors")
_SUPPORTED = f"supported are models without scaling and with the factors of Llama 3.1 ({_FACTORS})"


def read_rope(file: GgufFile, rope_base: float, head_dim: int) -> Rope | None:
    """The frequencies of the powers of `rope_base`, each over its factor; None without factors.

    Raises:
        BadWeights: there is not one factor above 0 for each of the head_dim / 2 pairs.
        UnsupportedModel: the factors have a dtype that is not read.

    """
    if _FACTORS not in file.tensor_names:
        return None
    factors = file.tensor(_FACTORS, (head_dim // 2,))
    if not (factors > 0).all():
        raise BadWeights(
            f"tensor {_FACTORS!r} in {file.path.name} holds {factors.min():g}, factors of RoPE are above 0; "
            "the model is damaged, get it from its publisher again"
        )
    # In float32, as models compute them: late positions multiply the last bit.
    wavelengths = np.float32(rope_base) ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    frequencies = np.float32(1) / wavelengths / factors
    return Rope(inverse_frequencies=tuple(float(value) for value in frequencies))


def refuse_other_scalings(file: GgufFile, family: str) -> None:
    """Raise `UnsupportedModel`, by name, if positions are scaled in a way that `read_rope` does not read."""
    kind = file.text(f"{family}.rope.scaling.type", "none")
    if kind != "none":
        raise UnsupportedModel(f"{file.path.name} scales RoPE ({kind!r}); {_SUPPORTED}")
    # Files may leave the kind out: then a factor means linear.
    for key in ("rope.scaling.factor", "rope.scale_linear"):
        found = file.real(f"{family}.{key}", 1.0)
        if found not in (0.0, 1.0):
            raise UnsupportedModel(f"{file.path.name} scales RoPE ({family}.{key} is {found:g}); {_SUPPORTED}")
    other = [name for name in file.tensor_names if name != _FACTORS and _is_factors(name)]
    if other:
        raise UnsupportedModel(f"{file.path.name} scales RoPE (tensor {other[0]!r}); {_SUPPORTED}")


def _is_factors(name: str) -> bool:
    return any(part in name for part in _OTHER_FACTORS)
