"""`config.json` of a checkpoint, read key by key with checks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from expertmesh_forge.errors import SourceError

__all__ = ["CheckpointConfig", "Values", "read_json"]

Values = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """The values of a config over the family's own defaults; `path` names it in errors.

    Every reader raises `SourceError` if the key is missing and has no default, or holds another kind of value.
    """

    path: Path
    values: Values

    def over(self, defaults: Values) -> CheckpointConfig:
        """The same config; what it does not say, or says to be null, comes from `defaults`."""
        said = {key: value for key, value in self.values.items() if value is not None}
        return CheckpointConfig(self.path, {**defaults, **said})

    def section(self, key: str) -> CheckpointConfig:
        """A config inside this one; empty if it is not there."""
        value = self.values.get(key) or {}
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return CheckpointConfig(self.path, value)

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def either(self, *keys: str) -> str:
        """The first of several spellings of a key that the config has; the first one of all if it has none."""
        return next((key for key in keys if self.has(key)), keys[0])

    def integer(self, key: str) -> int:
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "an integer")
        return value

    def size(self, key: str) -> int:
        """An integer of at least one."""
        value = self.integer(key)
        if value < 1:
            raise self._wrong(key, value, "at least 1")
        return value

    def number(self, key: str) -> float:
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self._get(key)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of integers; a single one counts as a list of one, a missing one as an empty list."""
        value = self.values.get(key)
        found: list[object] = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(one, int) for one in found):
            raise self._wrong(key, value, "an integer or a list of integers")
        return tuple(one for one in found if isinstance(one, int))

    def numbers(self, key: str) -> tuple[float, ...]:
        value = self._get(key)
        if not isinstance(value, list) or not all(isinstance(one, int | float) for one in value):
            raise self._wrong(key, value, "a list of numbers")
        return tuple(float(one) for one in value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; a missing one is empty."""
        value = self.values.get(key) or []
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self._wrong(key, value, "a list of texts")
        return tuple(value)

    def _get(self, key: str) -> object:
        if not self.has(key):
            raise SourceError(f"{self.path} has no {key!r}; copy the checkpoint's config.json again")
        return self.values[key]

    def _wrong(self, key: str, value: object, wanted: str) -> SourceError:
        return SourceError(f"{self.path}: {key!r} must be {wanted}, it is {value!r}")


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
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise SourceError(f"{path} is not valid JSON ({error}); copy it again") from error
    if not isinstance(values, dict):
        raise SourceError(f"{path} must hold a JSON object, it holds a {type(values).__name__}")
    return CheckpointConfig(path, values)
