"""Writing a bundle: blobs first, the manifest last, the whole folder renamed into place at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.bundle.manifest import (
    MANIFEST_NAME,
    Blob,
    Calibration,
    Expert,
    ExpertBlob,
    Gate,
    Graph,
    Layer,
    Manifest,
    Precision,
    Segment,
    Tokenizer,
    Trunk,
    write_manifest,
)
from expertmesh_common.bundle.tensors import encode_tensors, read_views
from expertmesh_common.graphs.expert import ExpertShape, resident_bytes
from expertmesh_common.graphs.trunk import TrunkShape, segment_graph
from expertmesh_forge.bundling.layout import expert_tensors, gate_tensors, segment_tensors
from expertmesh_forge.carve.carved_model import CarvedLayer, CarvedModel
from expertmesh_forge.dense_model import DenseConfig
from expertmesh_forge.errors import BundleError
from expertmesh_forge.gguf_tokenizer import ChatSettings
from expertmesh_forge.input_energy import LayerEnergy

__all__ = ["BundleLabels", "place_of", "require_replaceable", "swap_into_place", "write_bundle"]


@dataclass(frozen=True, slots=True)
class BundleLabels:
    """What the manifest says beside the weights. `tokenizer_json` is the text of a `tokenizer.json`."""

    name: str
    precisions: tuple[Precision, ...]
    context_tokens: int
    tokenizer_json: str
    chat: ChatSettings
    calibration: Calibration


def write_bundle(
    carved: CarvedModel,
    labels: BundleLabels,
    folder: Path,
    on_segment: Callable[[int, int], None] = lambda _done, _total: None,
) -> Manifest:
    """Write the bundle into `folder`, replacing a bundle that is there only once the new one is whole.

    Raises:
        BundleError: `folder` cannot be written, or holds something that is not a bundle.

    """
    with _replacing(folder) as partial:
        blobs = BlobStore(partial / "blobs")
        segments, layers = [], []
        total = carved.dense.config.layers + 1
        for index in range(total):
            segments.append(_segment(carved, index, labels, blobs))
            if index < carved.dense.config.layers:
                layers.append(_layer(index, carved, labels.precisions, blobs))
            on_segment(index + 1, total)
        manifest = Manifest(
            name=labels.name,
            family="llama",
            source=f"{carved.dense.source.file_name} sha256:{carved.dense.source.file_sha256}",
            licence=carved.dense.source.licence,
            trunk=_trunk(carved.dense.config, labels.context_tokens, segments),
            layers=tuple(layers),
            tokenizer=_tokenizer(labels, blobs),
            calibration=labels.calibration,
        )
        write_manifest(manifest, partial)
    return manifest


def _layer(index: int, carved: CarvedModel, precisions: Sequence[Precision], blobs: BlobStore) -> Layer:
    layer, energy = carved.layers[index], carved.energy.layers[index] if carved.energy else None
    gate = Gate(
        scorer="linear",
        picker="threshold",
        threshold=float(layer.router.threshold),
        max_k=layer.experts,
        weights=blobs.put(encode_tensors(gate_tensors(layer))),
    )
    experts = tuple(
        Expert(
            index=expert,
            width=layer.expert_width,
            frequency=layer.frequency[expert],
            blobs={precision: _expert_blob(layer, expert, precision, energy, blobs) for precision in precisions},
        )
        for expert in range(layer.experts)
    )
    return Layer(
        index=index,
        kind="moe",
        gate=gate,
        shared_width=layer.shared_width,
        total_width=len(layer.order),
        experts=experts,
    )


def _expert_blob(
    layer: CarvedLayer, index: int, precision: Precision, energy: LayerEnergy | None, blobs: BlobStore
) -> ExpertBlob:
    shape = ExpertShape(layer.gate.shape[1], layer.expert_width, precision)
    blob = blobs.put(encode_tensors(expert_tensors(layer, index, precision, energy)))
    return ExpertBlob(digest=blob.digest, size_bytes=blob.size_bytes, resident_bytes=resident_bytes(shape))


def _segment(carved: CarvedModel, index: int, labels: BundleLabels, blobs: BlobStore) -> Segment:
    graphs = {precision: _graph(carved, index, precision, blobs) for precision in labels.precisions}
    return Segment(index=index, graphs=graphs)


def _graph(carved: CarvedModel, index: int, precision: Precision, blobs: BlobStore) -> Graph:
    config = carved.dense.config
    weights = blobs.put(encode_tensors(segment_tensors(carved, index, precision)))
    shape = TrunkShape(
        config.layers, config.hidden, config.heads, config.kv_heads, config.head_dim, config.norm_eps
    )  # fmt: skip
    views = read_views(blobs.path(weights.digest))
    return Graph(graph=blobs.put(segment_graph(shape, index, precision, views, weights.digest)), weights=weights)


def _trunk(config: DenseConfig, context_tokens: int, segments: Sequence[Segment]) -> Trunk:
    return Trunk(
        hidden=config.hidden,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        vocabulary=config.vocab,
        context_tokens=context_tokens,
        rope_base=config.rope_base,
        rope=config.rope,
        norm_epsilon=config.norm_eps,
        activation="swiglu",
        segments=tuple(segments),
    )


def _tokenizer(labels: BundleLabels, blobs: BlobStore) -> Tokenizer:
    template = labels.chat.chat_template
    chat: Blob | None = blobs.put(template.encode()) if template else None
    return Tokenizer(
        vocabulary=blobs.put(labels.tokenizer_json.encode()),
        chat_template=chat,
        bos_id=labels.chat.bos_id if labels.chat.adds_bos else None,
        eos_ids=labels.chat.eos_ids,
    )


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A fresh sibling of `folder` that takes its name if the body succeeds and vanishes if it fails."""
    place = place_of(folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".partial", dir=place.parent))
    partial.chmod(0o755)
    try:
        yield partial
        swap_into_place(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_replaceable(folder: Path) -> None:
    """Raise `BundleError` if a bundle cannot be written to `folder`, or would destroy something else."""
    place_of(folder)


def place_of(folder: Path) -> Path:
    """Where a bundle that is called `folder` lies: links lead there, and stay as they are.

    Raises:
        BundleError: nothing can be there, or something is that is not a bundle.

    """
    try:
        place = folder.resolve()
    except (OSError, RuntimeError) as error:  # the latter for links in a circle, before Python 3.13
        raise BundleError(f"{folder} leads nowhere ({error}); choose another folder") from error
    if place.is_dir():
        if not (place / MANIFEST_NAME).is_file() and any(place.iterdir()):
            raise BundleError(f"{folder} exists and is not a bundle; choose another folder or remove it")
        return place
    # Parents that are missing are made; a file cannot become one.
    first = next(path for path in (place, *place.parents) if path.exists())
    if not first.is_dir():
        raise BundleError(f"{first} is a file, so no bundle can be written to {folder}; choose another folder")
    return place


def swap_into_place(partial: Path, place: Path) -> None:
    """Give the whole bundle in `partial` the name `place`, which is no link; a bundle that has it stays until then."""
    if not place.exists():
        partial.rename(place)
        return
    # A folder that is not empty cannot be renamed over, so the old bundle steps aside for an instant.
    old = place.with_name(f".{place.name}.{os.getpid()}.old")
    place.rename(old)
    try:
        partial.rename(place)
    except BaseException:
        old.rename(place)
        raise
    shutil.rmtree(old)
