"""The families of checkpoints that can be imported, by `model_type`."""

from __future__ import annotations

from expertmesh_forge.errors import UnsupportedModel
from expertmesh_forge.importing.config import CheckpointConfig
from expertmesh_forge.importing.families.base import Family
from expertmesh_forge.importing.families.deepseek import DeepseekV2, DeepseekV3
from expertmesh_forge.importing.families.gpt_oss import GptOss
from expertmesh_forge.importing.families.granite import GraniteMoe, GraniteMoeShared
from expertmesh_forge.importing.families.llama4 import Llama4Text
from expertmesh_forge.importing.families.mixtral import Mixtral
from expertmesh_forge.importing.families.olmoe import Olmoe
from expertmesh_forge.importing.families.phimoe import PhiMoe
from expertmesh_forge.importing.families.qwen import Qwen2Moe, Qwen3Moe

__all__ = ["FAMILIES", "family_of"]

_ALL: tuple[type[Family], ...] = (
    Mixtral, Qwen2Moe, Qwen3Moe, Olmoe, GraniteMoe, GraniteMoeShared, PhiMoe, DeepseekV2, DeepseekV3, GptOss, Llama4Text
)  # fmt: skip
FAMILIES: dict[str, type[Family]] = {family.model_type: family for family in _ALL} | {"llama4": Llama4Text}


def family_of(config: CheckpointConfig) -> Family:
    """The family that reads this checkpoint.

    Raises:
        UnsupportedModel: no family has this model_type, or it has settings that are not converted.
        SourceError: the config is not whole.

    """
    kind = config.text("model_type")
    if kind not in FAMILIES:
        raise UnsupportedModel(
            f"{config.path}: model_type {kind!r} is not supported; supported: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[kind](config)
