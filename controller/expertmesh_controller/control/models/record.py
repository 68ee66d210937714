"""Which models a restarted controller serves again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from expertmesh_common.errors import CorruptData
from expertmesh_controller.cluster.models import ModelSpec

MODELS_KEY = "models"


@dataclass(frozen=True, slots=True)
class ModelsRecord:
    """Kept under `MODELS_KEY`: what the controller was `started_with`, and what it serves after changes at run time."""

    started_with: tuple[ModelSpec, ...]
    served: tuple[ModelSpec, ...]

    def encode(self) -> bytes:
        document = {
            "started_with": [spec.to_document() for spec in self.started_with],
            "served": [spec.to_document() for spec in self.served],
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @staticmethod
    def decode(data: bytes | None) -> ModelsRecord | None:
        """The record, or None where there is none.

        Raises:
            CorruptData: the bytes are not a record.

        """
        if data is None:
            return None
        try:
            document = json.loads(data)
            return ModelsRecord(
                tuple(ModelSpec.from_document(d) for d in document["started_with"]),
                tuple(ModelSpec.from_document(d) for d in document["served"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptData(f"the store's {MODELS_KEY!r} is not a list of models: {error}") from error


def models_at_start(given: Sequence[ModelSpec], record: ModelsRecord | None) -> tuple[ModelSpec, ...]:
    """What to serve: after a restart with the same settings, what was served last.

    Different settings are the operator's newer word: they hold, with what else was served at run time.
    """
    if record is None:
        return tuple(given)
    if record.started_with == tuple(given):
        return record.served
    old = set(record.started_with)
    said = {spec.path for spec in (*given, *old)} | {spec.name for spec in given}
    return (*given, *(s for s in record.served if s not in old and s.path not in said and s.name not in said))
