"""`manifest.json` of a model bundle: what a served model consists of, by digest.

A bundle is a folder: `manifest.json` and `blobs/sha256/<digest>`. Nothing in it is executed but ONNX graphs of
standard and `com.microsoft` operators.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from expertmesh_common.bundle.parts import (
    NUMERICS,
    PRECISIONS,
    Blob,
    Digest,
    Expert,
    ExpertBlob,
    Frozen,
    Gate,
    Graph,
    Layer,
    Numerics,
    Precision,
    Segment,
    Share,
    Trunk,
)
from expertmesh_common.errors import CorruptData, InvalidInput, NotHere

SCHEMA_VERSION = 2
MANIFEST_NAME = "manifest.json"

__all__ = [
    "MANIFEST_NAME",
    "NUMERICS",
    "PRECISIONS",
    "SCHEMA_VERSION",
    "Blob",
    "Calibration",
    "Expert",
    "ExpertBlob",
    "Gate",
    "Graph",
    "Layer",
    "Manifest",
    "Numerics",
    "Precision",
    "Segment",
    "Tokenizer",
    "Trunk",
    "parse_manifest",
    "read_manifest",
    "write_manifest",
]


class Tokenizer(Frozen):
    """`vocabulary` is a `tokenizer.json`; `chat_template` a Jinja2 text."""

    vocabulary: Blob
    chat_template: Blob | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...]


class Calibration(Frozen):
    """What the fit measured; ratios are perplexity over that of the dense model on held-out documents."""

    target_share: Share
    heldout_share: Share | None = None
    perplexity_ratio: float | None = None
    tokens: int = 0
    refit: bool = False
    split_digest: str = ""


class Manifest(Frozen):
    """A token MoE."""

    schema_version: Literal[1, 2] = 2
    kind: Literal["token-moe"] = "token-moe"
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    family: str
    source: str
    licence: str
    trunk: Trunk
    layers: tuple[Layer, ...]
    tokenizer: Tokenizer
    calibration: Calibration | None = None
    parent: Digest | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if [layer.index for layer in self.layers] != list(range(len(self.layers))):
            raise ValueError("the layers are not numbered 0, 1, 2, ...")
        if [s.index for s in self.trunk.segments] != list(range(len(self.layers) + 1)):
            raise ValueError(f"{len(self.layers)} layers need the segments 0 to {len(self.layers)}, in order")
        ids = [*self.tokenizer.eos_ids, self.tokenizer.bos_id or 0]
        if max(ids) >= self.trunk.vocabulary:
            raise ValueError(f"token {max(ids)} is beyond the vocabulary of {self.trunk.vocabulary}")
        return self

    @cached_property
    def precisions(self) -> tuple[Precision, ...]:
        """Precisions in which every expert and every segment is present, best first."""
        sets = [set(e.blobs) for layer in self.layers for e in layer.experts]
        sets += [set(s.graphs) for s in self.trunk.segments]
        common = set.intersection(*sets) if sets else set()
        return tuple(p for p in PRECISIONS if p in common)

    def expert_bytes(self, precision: Precision) -> int:
        """Resident bytes of one copy of every routed expert."""
        return sum(e.blobs[precision].resident_bytes for layer in self.layers for e in layer.experts)

    def all_blobs(self) -> tuple[Blob, ...]:
        """Every distinct blob, in a stable order."""
        found: dict[str, Blob] = {}
        for blob in _walk(self):
            found.setdefault(blob.digest, blob)
        return tuple(found.values())


def _walk(value: object) -> list[Blob]:
    if isinstance(value, Blob):
        return [value]
    if isinstance(value, BaseModel):
        return [b for name in type(value).model_fields for b in _walk(getattr(value, name))]
    if isinstance(value, dict):
        return [b for v in value.values() for b in _walk(v)]
    if isinstance(value, tuple):
        return [b for v in value for b in _walk(v)]
    return []


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle in `folder`.

    Raises:
        NotHere: there is no bundle.
        InvalidInput: the manifest's schema is newer than this program.
        CorruptData: the manifest is not valid.

    """
    path = folder / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotHere(
            f"no model bundle in {folder}: {MANIFEST_NAME} is missing; make one with `expertmesh model convert`"
        ) from None
    except UnicodeDecodeError as error:
        raise CorruptData(f"{path} is not UTF-8 text: {error}") from error
    return parse_manifest(text, str(path))


def parse_manifest(text: str, origin: str) -> Manifest:
    """`text` as a manifest; `origin` names it in errors."""
    try:
        probe = _Probe.model_validate_json(text)
        if probe.schema_version > SCHEMA_VERSION:
            raise InvalidInput(
                f"{origin} has schema version {probe.schema_version}, this program reads up to {SCHEMA_VERSION}: "
                "upgrade expertmesh"
            )
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise CorruptData(f"{origin} is not a valid manifest: {where}: {first['msg']}") from error


class _Probe(BaseModel):
    schema_version: int


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write the manifest last, atomically: a folder with a manifest is a whole bundle."""
    path = folder / MANIFEST_NAME
    partial = path.with_suffix(".partial")
    partial.write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
