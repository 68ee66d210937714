"""`manifest.json` of a model bundle: what a served model consists of, by digest.

A bundle is a folder: `manifest.json` and `blobs/sha256/<digest>`. Nothing in it is executed but ONNX graphs of
standard and `com.microsoft` operators.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from expertmesh_common.errors import CorruptData, InvalidInput, NotHere

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"

Precision = Literal["fp32", "int4"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Blob(Frozen):
    """A content-addressed file of the bundle."""

    digest: Digest
    size_bytes: Annotated[int, Field(gt=0)]


class ExpertBlob(Blob):
    """One expert at one precision. `resident_bytes` is what a loaded instance counts against a budget."""

    resident_bytes: Annotated[int, Field(gt=0)]


class Expert(Frozen):
    """A routed expert. `frequency` is the share of calibration tokens that were routed to it."""

    index: Annotated[int, Field(ge=0)]
    width: Annotated[int, Field(gt=0)]
    frequency: Share
    blobs: dict[Precision, ExpertBlob]


class Gate(Frozen):
    """How a layer's rows choose experts: scorer -> picker -> weights, all as data.

    `weights` is a safetensors blob with `router` float32 [hidden, experts] and `bias` float32 [experts];
    scores = rows @ router + bias. Scorer `linear` uses them as they are. Picker `threshold` takes every expert whose
    score is >= `threshold`, at least `min_k` (best first) and at most `max_k`; picker `top_k` takes the best `max_k`.
    `weighting` `one` gives every picked expert weight 1 (a plain sum).
    """

    scorer: Literal["linear"]
    picker: Literal["threshold", "top_k"]
    threshold: float | None = None
    min_k: Annotated[int, Field(ge=0)] = 0
    max_k: Annotated[int, Field(ge=1)]
    weighting: Literal["one"] = "one"
    weight_on: Literal["input", "output"] = "output"
    weights: Blob

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.picker == "threshold" and self.threshold is None:
            raise ValueError("picker `threshold` needs a threshold")
        if self.min_k > self.max_k:
            raise ValueError(f"min_k {self.min_k} is above max_k {self.max_k}")
        return self


class Layer(Frozen):
    """A feed-forward block. `total_width` counts shared and routed neurons; shared ones live in the trunk."""

    index: Annotated[int, Field(ge=0)]
    kind: Literal["moe"]
    gate: Gate
    shared_width: Annotated[int, Field(ge=0)]
    total_width: Annotated[int, Field(gt=0)]
    experts: tuple[Expert, ...]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if [e.index for e in self.experts] != list(range(len(self.experts))):
            raise ValueError(f"the experts of layer {self.index} are not numbered 0, 1, 2, ...")
        width = self.shared_width + sum(e.width for e in self.experts)
        if width != self.total_width:
            raise ValueError(
                f"layer {self.index} has {width} neurons in its experts, total_width is {self.total_width}"
            )
        return self


class Graph(Frozen):
    """An ONNX graph whose initialisers lie in the safetensors blob `weights` (its location is that digest)."""

    graph: Blob
    weights: Blob


class Segment(Frozen):
    """A piece of the trunk between two MoE layers, at each precision. The last one is the head."""

    index: Annotated[int, Field(ge=0)]
    graphs: dict[Precision, Graph]


class Trunk(Frozen):
    """Everything that is not a routed expert. Segment i (i < layers) ends at MoE layer i; the last is the head."""

    hidden: Annotated[int, Field(gt=0)]
    heads: Annotated[int, Field(gt=0)]
    kv_heads: Annotated[int, Field(gt=0)]
    head_dim: Annotated[int, Field(gt=0)]
    vocabulary: Annotated[int, Field(gt=0)]
    context_tokens: Annotated[int, Field(gt=0)]
    rope_base: float
    norm_epsilon: float
    activation: Literal["swiglu"]
    segments: tuple[Segment, ...]


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

    schema_version: Literal[1] = 1
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
        order: tuple[Precision, ...] = ("fp32", "int4")
        return tuple(p for p in order if p in common)

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
