"""What a controller needs from its predecessor: the desired placement, the last epoch, and who must not come back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from expertmesh_common.errors import CorruptData
from expertmesh_controller.cluster.routes import Epoch
from expertmesh_controller.control.catalogue import ExpertKey
from expertmesh_controller.control.journal import key_facts, keys_of

RECORD_KEY = "control"


@dataclass(frozen=True, slots=True)
class ControlRecord:
    """Kept under `RECORD_KEY`, written before anything is done about it."""

    epoch: Epoch = field(default_factory=Epoch)
    desired: Mapping[str, frozenset[ExpertKey]] = field(default_factory=dict)
    retired: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    generations: Mapping[str, str] = field(default_factory=dict)
    """The last start of every worker."""
    incarnation: str = ""
    """Made with the first record of a store: epochs of another incarnation cannot be compared."""

    def encode(self) -> bytes:
        document = {
            "epoch": [self.epoch.term, self.epoch.n],
            "desired": {w: key_facts(keys) for w, keys in sorted(self.desired.items())},
            "retired": {w: list(g) for w, g in sorted(self.retired.items())},
            "generations": dict(self.generations),
            "incarnation": self.incarnation,
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @staticmethod
    def decode(data: bytes | None) -> ControlRecord:
        """The record, or an empty one where there is none.

        Raises:
            CorruptData: the bytes are not a record.

        """
        if data is None:
            return ControlRecord()
        try:
            document = json.loads(data)
            return ControlRecord(
                Epoch(*document["epoch"]),
                {w: keys_of(facts) for w, facts in document["desired"].items()},
                {w: tuple(g) for w, g in document["retired"].items()},
                dict(document.get("generations", {})),  # records of before had neither
                document.get("incarnation", ""),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptData(f"the store's {RECORD_KEY!r} is not a control record: {error}") from error
