"""`config.json` of a checkpoint, read key by key with checks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from expertmesh_forge.errors import SourceError

__all__ = ["CheckpointConfig", "Values", "read_json"]

Values = Mapping[str, object]

# Positions, rows and columns are counted in 32 bits when a model is served.
_LARGEST_SIZE = 2**31 - 1
_LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127
_SHOWN_CHARACTERS = 120
# How keys end that shapes of tensors come from.
_ATTENTION_KEYS = ("hidden_size", "_dim", "_rank", "_heads")
_SIZE_KEYS = (*_ATTENTION_KEYS, "_size", "_size_mlp", "_experts")


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """The values of a config over the family's own defaults; `path` names it in errors, `defaulted` the keys left out.

    Every reader raises `SourceError` if the key is missing and has no default, or holds another kind of value.
    """

    path: Path
    values: Values
    defaulted: frozenset[str] = frozenset()

    def over(self, defaults: Values) -> CheckpointConfig:
        """The same config; what it does not say, or says to be null, comes from `defaults`."""
        said = {key: value for key, value in self.values.items() if value is not None}
        return CheckpointConfig(self.path, {**defaults, **said}, self.defaulted | (defaults.keys() - said.keys()))

    def section(self, key: str) -> CheckpointConfig:
        """A config inside this one; empty if it is not there."""
        value = self.values[key] if self.has(key) else {}
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return CheckpointConfig(self.path, value)

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def says(self, key: str) -> bool:
        """Whether the config itself has the key, not only the defaults under it."""
        return self.has(key) and key not in self.defaulted

    def either(self, *keys: str) -> str:
        """The first of several spellings of a key that the config has; the first one of all if it has none."""
        return next((key for key in keys if self.has(key)), keys[0])

    def integer(self, key: str) -> int:
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, "an integer")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """An integer of at least one, and no larger than anything that can be served."""
        return default if default is not None and not self.has(key) else self._between(key, 1)

    def count(self, key: str) -> int:
        """As `size`, or zero."""
        return self._between(key, 0)

    def number(self, key: str) -> float:
        """A number that float32 can hold."""
        value = self._get(key)
        if not _is_number(value):
            raise self.wrong(key, "a number")
        if not _fits_float32(value):
            raise self.wrong(key, "finite in 32 bits")
        return float(value)

    def positive(self, key: str) -> float:
        """A number above zero."""
        value = self.number(key)
        if value <= 0:
            raise self.wrong(key, "above 0")
        return value

    def flag(self, key: str) -> bool:
        value = self._get(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of integers; a single one counts as a list of one, a missing one as an empty list."""
        value = self.values.get(key)
        found: list[object] = [] if value is None else value if isinstance(value, list) else [value]
        whole = tuple(one for one in found if isinstance(one, int) and not isinstance(one, bool))
        if len(whole) != len(found):
            raise self.wrong(key, "an integer or a list of integers")
        return whole

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        value = self._get(key)
        if not isinstance(value, list) or not all(_is_number(one) and _fits_float32(one) for one in value):
            raise self.wrong(key, "a list of numbers")
        return tuple(float(one) for one in value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; a missing one is empty."""
        value = self.values[key] if self.has(key) else []
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.wrong(key, "a list of texts")
        return tuple(value)

    def wrong(self, key: str, wanted: str) -> SourceError:
        """The error of a value that is not `wanted`."""
        shown = repr(self.values[key])
        cut = shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."
        return SourceError(f"{self.path}: {key!r} must be {wanted}, it is {cut}")

    def sizes_behind(self, tensor: str, wanted: Sequence[int]) -> str:
        """Which of its sizes a tensor that should have the axes `wanted` comes of, as far as that can be told."""
        said = self._sizes()
        if "attn" in tensor:  # products of several sizes
            return _listed({key: said[key] for key in said if key.endswith(_ATTENTION_KEYS)})
        exact = {key: value for key, value in said.items() if value in wanted}
        half = {key: value for key, value in said.items() if 2 * value in wanted}  # gate and up in one
        return _listed(exact or half or said)

    def _sizes(self) -> dict[str, int]:
        inner = self.values.get("text_config")
        each = {**self.values, **(inner if isinstance(inner, dict) else {})}
        return {key: value for key, value in each.items() if key.endswith(_SIZE_KEYS) and type(value) is int}

    def _between(self, key: str, least: int) -> int:
        value = self.integer(key)
        if value < least:
            raise self.wrong(key, f"at least {least}")
        if value > _LARGEST_SIZE:
            raise self.wrong(key, f"at most {_LARGEST_SIZE}")
        return value

    def _get(self, key: str) -> object:
        if not self.has(key):
            raise SourceError(f"{self.path} has no {key!r}; copy the checkpoint's config.json again")
        return self.values[key]


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fits_float32(value: float) -> bool:
    return -_LARGEST_FLOAT32 <= value <= _LARGEST_FLOAT32  # false for NaN


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sizes.items())


def read_json(path: Path) -> CheckpointConfig:
    """A JSON object from a file.

    Raises:
        SourceError: the file is missing, or is not a JSON object.

    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path} is missing: give the folder of a Hugging Face checkpoint") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also an integer of more digits than are read
        raise SourceError(f"{path} is not valid JSON ({error}); copy it again") from error
    if not isinstance(values, dict):
        raise SourceError(f"{path} must hold a JSON object, it holds a {type(values).__name__}")
    return CheckpointConfig(path, values)
