"""Rotary positions of a checkpoint as data: every scaling becomes inverse frequencies and one factor.

The arithmetic is that of transformers' `modeling_rope_utils`, in float32 as there, so that long positions turn alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from expertmesh_common.bundle.parts import Rope
from expertmesh_forge.dense_model import Floats
from expertmesh_forge.errors import SourceError, UnsupportedModel
from expertmesh_forge.importing.config import CheckpointConfig

__all__ = ["RopeSettings", "read_rope", "rope_settings", "yarn_magnitude"]

_OLDER_NAMES = {"su": "longrope"}


@dataclass(frozen=True, slots=True)
class RopeSettings:
    """`scaling` are the config's rope parameters, `base` the theta, `dim` how many values of a head turn."""

    scaling: CheckpointConfig
    kind: str
    base: float
    dim: int
    context_tokens: int
    trained_tokens: int

    @property
    def factor(self) -> float:
        """How much longer than trained the model reads."""
        if self.scaling.has("factor"):
            return self.scaling.positive("factor")
        return self.context_tokens / self.trained_tokens


def rope_settings(config: CheckpointConfig, dim: int) -> RopeSettings:
    """What the config says, in either spelling: `rope_parameters`, or `rope_theta` beside `rope_scaling`.

    Where both are there, `rope_scaling` counts: people add it by hand to serve longer texts. It rarely repeats the
    theta; that of the saved `rope_parameters` is then the one that the model was trained with.

    Raises:
        UnsupportedModel: positions turn only a part of each head, or not alike in all layers.
        SourceError: a value is missing, of the wrong kind, or contradicts another.

    """
    scaling, saved = config.section("rope_scaling"), config.section("rope_parameters")
    _require_alike(config, scaling, saved)
    given = scaling if scaling.values else saved
    context = config.size("max_position_embeddings")
    # Phi keeps the trained length beside the rope parameters, and there it counts more.
    trained = config if config.has("original_max_position_embeddings") else given
    spelling = given.either("rope_type", "type")
    kind = given.text(spelling) if given.has(spelling) else "default"
    return RopeSettings(
        scaling=given,
        kind=_OLDER_NAMES.get(kind, kind),
        base=_base(config, given, saved),
        dim=dim,
        context_tokens=context,
        trained_tokens=trained.size("original_max_position_embeddings")
        if trained.has("original_max_position_embeddings")
        else context,
    )  # fmt: skip


def _require_alike(config: CheckpointConfig, *sections: CheckpointConfig) -> None:
    """Heads turn whole, and in all layers alike, in every model that is served."""
    for section in (config, *sections):
        if section.has("partial_rotary_factor") and section.number("partial_rotary_factor") != 1.0:
            raise UnsupportedModel(f"{config.path}: partial_rotary_factor other than 1 is not supported")
    kinds = [key for section in sections for key, value in section.values.items() if _of_some_layers(key, value)]
    if kinds:
        raise UnsupportedModel(
            f"{config.path}: rope parameters per layer type ({', '.join(kinds)}) are not supported: "
            "positions must turn alike in all layers"
        )


def _of_some_layers(key: str, value: object) -> bool:
    return isinstance(value, dict) or key.endswith("_attention")


def _base(config: CheckpointConfig, given: CheckpointConfig, saved: CheckpointConfig) -> float:
    if given.has("rope_theta") or not saved.has("rope_theta"):
        return (given if given.has("rope_theta") else config).positive("rope_theta")
    base = saved.positive("rope_theta")
    if config.says("rope_theta") and config.positive("rope_theta") != base:
        raise SourceError(
            f"{config.path}: rope_theta is {config.positive('rope_theta'):g}, but {base:g} in 'rope_parameters', and "
            "'rope_scaling' does not say which one it scales: put the right rope_theta into 'rope_scaling'"
        )
    return base


def read_rope(settings: RopeSettings, served_tokens: int) -> Rope:
    """The rope of a model that serves texts of up to `served_tokens`.

    Raises:
        UnsupportedModel: a scaling that this toolchain does not know, or one that must change with the text's length.
        SourceError: its values are impossible.

    """
    if settings.kind not in _KINDS:
        known = ", ".join(sorted(_KINDS))
        raise UnsupportedModel(
            f"{settings.scaling.path}: rope type {settings.kind!r} is not supported; there are {known}"
        )
    try:
        with np.errstate(all="ignore"):
            frequencies, factor = _KINDS[settings.kind](settings, served_tokens)
    except (ArithmeticError, ValueError) as error:
        raise _impossible(settings, str(error)) from error
    if not (np.isfinite(frequencies).all() and (frequencies > 0).all() and math.isfinite(factor)):
        raise _impossible(settings, "not every pair of values turns by a finite angle")
    return Rope(inverse_frequencies=tuple(float(value) for value in frequencies), factor=factor)


def _impossible(settings: RopeSettings, why: str) -> SourceError:
    plain = {key: value for key, value in settings.scaling.values.items() if not isinstance(value, list)}
    said = ", ".join(f"{key} {value!r}" for key, value in plain.items() if key != "rope_theta")
    return SourceError(
        f"{settings.scaling.path}: positions cannot be computed from rope_theta {settings.base:g}"
        f"{f' and {said}' if said else ''}: {why}"
    )


def yarn_magnitude(scale: float, weight: float = 1.0) -> float:
    """How much YaRN sharpens attention when texts are `scale` times as long as trained."""
    return 0.1 * weight * math.log(scale) + 1.0 if scale > 1 else 1.0


def _plain(settings: RopeSettings, _served: int) -> tuple[Floats, float]:
    return (np.float32(1) / _wavelengths(settings)).astype(np.float32), 1.0


def _linear(settings: RopeSettings, served: int) -> tuple[Floats, float]:
    frequencies, factor = _plain(settings, served)
    return (frequencies / np.float32(settings.factor)).astype(np.float32), factor


def _dynamic(settings: RopeSettings, served: int) -> tuple[Floats, float]:
    # It changes with the text only beyond the config's context, which is never served.
    return _plain(settings, served)


def _yarn(settings: RopeSettings, _served: int) -> tuple[Floats, float]:
    scaling, wavelengths = settings.scaling, _wavelengths(settings)
    beta_fast = scaling.positive("beta_fast") if scaling.has("beta_fast") else 32.0
    beta_slow = scaling.positive("beta_slow") if scaling.has("beta_slow") else 1.0
    low, high = _turning_dim(settings, beta_fast), _turning_dim(settings, beta_slow)
    if not scaling.has("truncate") or scaling.flag("truncate"):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, settings.dim - 1)
    ramp = (np.arange(settings.dim // 2, dtype=np.float32) - low) / (high - low or 0.001)
    kept = np.float32(1) - np.clip(ramp, 0, 1).astype(np.float32)
    stretched = np.float32(1) / (np.float32(settings.factor) * wavelengths)
    mixed = stretched * (1 - kept) + (np.float32(1) / wavelengths) * kept
    return mixed.astype(np.float32), _yarn_factor(settings)


def _yarn_factor(settings: RopeSettings) -> float:
    scaling = settings.scaling
    if scaling.has("attention_factor"):
        return scaling.positive("attention_factor")
    if all(scaling.has(key) and scaling.number(key) for key in ("mscale", "mscale_all_dim")):
        above, below = (yarn_magnitude(settings.factor, scaling.number(key)) for key in ("mscale", "mscale_all_dim"))
        return above / below
    return yarn_magnitude(settings.factor)


def _turning_dim(settings: RopeSettings, turns: float) -> float:
    """The (fractional) pair that turns `turns` times over the trained context."""
    around = math.log(settings.trained_tokens / (turns * 2 * math.pi))
    return settings.dim * around / (2 * math.log(settings.base))


def _longrope(settings: RopeSettings, served: int) -> tuple[Floats, float]:
    scaling, longer = settings.scaling, served > settings.trained_tokens
    key = "long_factor" if longer else "short_factor"
    stretch = np.asarray(scaling.numbers(key), np.float32)
    if len(stretch) != settings.dim // 2:
        raise scaling.wrong(key, f"a list of {settings.dim // 2} numbers, one for every pair of values that turns")
    magnitude = "long_mscale" if longer else "short_mscale"
    if scaling.has(magnitude):
        factor = scaling.positive(magnitude)
    elif scaling.has("attention_factor"):
        factor = scaling.positive("attention_factor")
    else:
        ratio = settings.factor
        factor = math.sqrt(1 + math.log(ratio) / math.log(settings.trained_tokens)) if ratio > 1 else 1.0
    return (np.float32(1) / (stretch * _wavelengths(settings))).astype(np.float32), factor


def _llama3(settings: RopeSettings, served: int) -> tuple[Floats, float]:
    scaling, trained = settings.scaling, settings.trained_tokens
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    frequencies, factor = _plain(settings, served)
    turns = trained * frequencies / np.float32(2 * math.pi)
    # Where both limits are one, nothing lies between them.
    smooth = np.clip((turns - np.float32(low)) / np.float32(high - low), 0, 1) if high > low else turns >= low
    stretched = frequencies / np.float32(settings.factor)
    return ((1 - smooth) * stretched + smooth * frequencies).astype(np.float32), factor


def _wavelengths(settings: RopeSettings) -> Floats:
    powers = np.arange(0, settings.dim, 2, dtype=np.float32) / np.float32(settings.dim)
    wavelengths: Floats = (np.float32(settings.base) ** powers).astype(np.float32)
    return wavelengths


_KINDS: dict[str, Callable[[RopeSettings, int], tuple[Floats, float]]] = {
    "default": _plain,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
