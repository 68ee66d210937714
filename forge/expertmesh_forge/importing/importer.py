"""Checkpoint folder -> model bundle: plan, go through it once without reading, then write layer by layer."""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from expertmesh_common.bundle.manifest import Manifest, Tokenizer, write_manifest
from expertmesh_common.bundle.parts import Precision, Trunk
from expertmesh_forge.bundling.writing import place_of, swap_into_place
from expertmesh_forge.errors import ForgeError, UnsupportedModel
from expertmesh_forge.importing.checkpoint import Checkpoint
from expertmesh_forge.importing.families import family_of
from expertmesh_forge.importing.opening import open_source
from expertmesh_forge.importing.outline import Outline
from expertmesh_forge.importing.planning import ModelPlan
from expertmesh_forge.importing.rehearsing import rehearse, require_possible
from expertmesh_forge.importing.resume import Growing, growing
from expertmesh_forge.importing.streaming import CheckpointWriter
from expertmesh_forge.importing.tokenizing import TextFiles
from expertmesh_forge.progress import Progress

__all__ = ["ImportCancelled", "ImportRequest", "Imported", "OutOfSpace", "import_checkpoint"]

# Changes when the same settings give other bytes, so that no import goes on with layers of an older program.
_LAYOUT = 2
# Of a GGUF file: what it ends with, and its number among the parts of a model.
_ENDING = re.compile(r"(-\d{5}-of-\d{5})?\.gguf$", re.IGNORECASE)


class OutOfSpace(ForgeError):
    """The disk is full; what is finished stays for the next run."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class ImportCancelled(ForgeError):
    """Somebody asked for the import to end; what is finished stays for the next run."""

    status = grpc.StatusCode.CANCELLED


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """What to import and how. `fresh` drops what an interrupted import left instead of going on with it."""

    source: Path
    folder: Path
    precisions: tuple[Precision, ...] = ("fp32", "int4")
    name: str | None = None
    context_tokens: int | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Imported:
    """The manifest that was written, what to know about it, and how many steps an earlier run had finished."""

    manifest: Manifest
    notes: tuple[str, ...]
    resumed_steps: int


def import_checkpoint(
    request: ImportRequest,
    on_progress: Progress = lambda _stage, _done, _total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Imported:
    """Import and return what was written. The same checkpoint and settings give the same bytes.

    An import that ends early leaves its finished layers beside `folder`, and the bundle that is there as it was.

    Raises:
        SourceError: a file of the checkpoint is missing, cut short, or not what it should be.
        UnsupportedModel: the family, a setting of it, or a dtype is not converted.
        BadWeights: a tensor is missing, misshapen or not finite.
        BundleError: `folder` cannot be written or holds something that is not a bundle, or another import writes there.
        OutOfSpace: the disk is full.
        ImportCancelled: `cancelled` said so, between two experts or while finished layers are checked.

    """
    # What lies beside the bundle is renamed to it at the end, so `.` and links must not stand for it until then.
    request = replace(request, folder=place_of(request.folder))
    name = _checked_name(request)
    checkpoint = open_source(request.source)
    family = family_of(checkpoint.config)
    outline = Outline(checkpoint.folder, checkpoint.config, checkpoint.tensors, checkpoint.digest)
    require_possible(family, outline)
    plan = family.plan(request.context_tokens)
    texts = checkpoint.texts(family.config, plan.vocabulary)
    rehearse(family, plan, outline, request.precisions)
    key = _key(checkpoint, plan, request)
    with _room(request.folder), growing(request.folder, key, fresh=request.fresh) as grown:
        counter = _Counter(plan, on_progress, cancelled)
        grown.recall(counter.check)
        resumed = len(grown.done)
        writer = CheckpointWriter(checkpoint, family, plan, request.precisions, grown.blobs, counter.piece)
        for index in range(len(plan.layers) + 1):
            if index in grown.done:
                counter.skip(index)
            else:
                grown.finish(writer.step(index))
        manifest = _manifest(name, checkpoint, plan, texts, grown)
        grown.tidy({blob.digest for blob in manifest.all_blobs()})
        write_manifest(manifest, grown.folder)
        swap_into_place(grown.folder, request.folder)
    return Imported(manifest, plan.notes, resumed)


class _Counter:
    """Progress in experts and segments."""

    def __init__(self, plan: ModelPlan, on_progress: Progress, cancelled: Callable[[], bool]) -> None:
        self._sizes = [1 + layer.experts for layer in plan.layers] + [1]
        self._done, self._report, self._cancelled = 0, on_progress, cancelled

    def check(self, done: int, total: int) -> None:
        """Of the layers that earlier runs finished, each is read whole, which takes a while too."""
        self._report("check", done, total)
        self._require_wanted()

    def piece(self) -> None:
        self._advance(1)
        self._require_wanted()

    def skip(self, index: int) -> None:
        self._advance(self._sizes[index])

    def _advance(self, count: int) -> None:
        self._done += count
        self._report("import", self._done, sum(self._sizes))

    def _require_wanted(self) -> None:
        if self._cancelled():
            raise ImportCancelled("the import was cancelled; run it again to go on with the layers that are finished")


def _key(checkpoint: Checkpoint, plan: ModelPlan, request: ImportRequest) -> str:
    settings = f"{_LAYOUT} {checkpoint.digest} {','.join(request.precisions)} {plan.context_tokens}"
    return hashlib.sha256(settings.encode()).hexdigest()


def _manifest(name: str, checkpoint: Checkpoint, plan: ModelPlan, texts: TextFiles, grown: Growing) -> Manifest:
    steps = [grown.done[index] for index in range(len(plan.layers) + 1)]
    template = texts.chat_template
    return Manifest(
        name=name,
        family=plan.family,
        source=f"{checkpoint.folder.resolve().name} (config and layout sha256:{checkpoint.digest})",
        licence=checkpoint.licence(),
        trunk=Trunk(
            hidden=plan.hidden,
            heads=plan.trunk.heads,
            kv_heads=plan.trunk.kv_heads,
            head_dim=plan.trunk.head_dim,
            vocabulary=plan.vocabulary,
            context_tokens=plan.context_tokens,
            rope_base=plan.rope_base,
            rope=plan.rope,
            norm_epsilon=plan.norm_epsilon,
            latent_norm_epsilon=plan.latent_norm_epsilon,
            activation=plan.activation,
            segments=tuple(step.segment for step in steps),
        ),
        layers=tuple(step.layer for step in steps if step.layer is not None),
        tokenizer=Tokenizer(
            vocabulary=grown.blobs.put(texts.tokenizer_json.encode()),
            chat_template=grown.blobs.put(template.encode()) if template else None,
            bos_id=texts.bos_id,
            eos_ids=texts.eos_ids,
        ),
    )


def _checked_name(request: ImportRequest) -> str:
    if request.name is None:
        stem = _ENDING.sub("", request.source.resolve().name)
        return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._").lower()[:128] or "imported"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", request.name):
        raise UnsupportedModel(
            f"the name {request.name!r} is not possible: up to 128 letters, digits, dots, dashes and underscores, "
            "a letter or digit first"
        )
    return request.name


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise OutOfSpace(
            f"no space is left on the disk of {folder.parent}; make room and run the same command again: "
            "the finished layers are kept"
        ) from error
