"""What a bundle holds, read from its manifest and its files, as data and as tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import Blob, Layer, Manifest, Precision
from expertmesh_forge.errors import BundleError

__all__ = ["BundleReport", "LayerReport", "inspect_bundle", "render_report", "verify_bundle"]

_MEGABYTE = 1e6


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer; `expected_share` is the share of its neurons evaluated per calibration token."""

    index: int
    experts: int
    shared_width: int
    expert_width: int
    threshold: float | None
    expected_share: float
    lowest_frequency: float
    highest_frequency: float


@dataclass(frozen=True, slots=True)
class PrecisionReport:
    """Bytes of the files at one precision; `resident_bytes` is what all experts take once loaded."""

    precision: Precision
    expert_bytes: int
    trunk_bytes: int
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class BundleReport:
    """The whole bundle. Ratios and shares are as the conversion measured them on held-out text."""

    name: str
    family: str
    licence: str
    source: str
    hidden: int
    heads: int
    kv_heads: int
    vocabulary: int
    context_tokens: int
    target_share: float | None
    heldout_share: float | None
    perplexity_ratio: float | None
    calibration_tokens: int
    refit: bool
    layers: tuple[LayerReport, ...]
    precisions: tuple[PrecisionReport, ...]

    def as_dict(self) -> dict[str, object]:
        """The report as JSON-ready values."""
        return asdict(self)


def inspect_bundle(bundle: Bundle) -> BundleReport:
    """Read what there is to know; byte counts come from the files, and a missing file is a `BundleError`."""
    manifest, trunk, fit = bundle.manifest, bundle.manifest.trunk, bundle.manifest.calibration
    return BundleReport(
        name=manifest.name, family=manifest.family, licence=manifest.licence, source=manifest.source,
        hidden=trunk.hidden, heads=trunk.heads, kv_heads=trunk.kv_heads, vocabulary=trunk.vocabulary,
        context_tokens=trunk.context_tokens,
        target_share=fit.target_share if fit else None,
        heldout_share=fit.heldout_share if fit else None,
        perplexity_ratio=fit.perplexity_ratio if fit else None,
        calibration_tokens=fit.tokens if fit else 0,
        refit=fit.refit if fit else False,
        layers=tuple(_layer(layer) for layer in manifest.layers),
        precisions=tuple(_precision(bundle, precision) for precision in manifest.precisions),
    )  # fmt: skip


def verify_bundle(bundle: Bundle) -> int:
    """Hash every blob of the manifest; returns how many there are, raises on the first that is missing or corrupt."""
    blobs = bundle.manifest.all_blobs()
    for blob in blobs:
        bundle.path(blob)
    return len(blobs)


def render_report(report: BundleReport, console: Console) -> None:
    """Print the report as a summary and two tables."""
    console.print(
        f"[bold]{report.name}[/bold]  {report.family}, {report.licence}\nsource {report.source}", soft_wrap=True
    )
    console.print(
        f"hidden {report.hidden}, {report.heads} heads ({report.kv_heads} kv), vocabulary {report.vocabulary}, "
        f"context {report.context_tokens} tokens",
        soft_wrap=True,
    )
    if report.target_share is not None:
        console.print(
            f"neurons evaluated: target {report.target_share:.1%}, held-out {_percent(report.heldout_share)}; "
            f"perplexity {_ratio(report.perplexity_ratio)} of the dense model; "
            f"{report.calibration_tokens} calibration tokens, "
            f"down projections {'refitted' if report.refit else 'kept'}",
            soft_wrap=True,
        )
    console.print(_precision_table(report.precisions))
    console.print(_layer_table(report.layers))


def _layer(layer: Layer) -> LayerReport:
    frequencies = [expert.frequency for expert in layer.experts]
    evaluated = layer.shared_width + sum(expert.width * expert.frequency for expert in layer.experts)
    return LayerReport(
        index=layer.index,
        experts=len(layer.experts),
        shared_width=layer.shared_width,
        expert_width=max((expert.width for expert in layer.experts), default=0),
        threshold=None if layer.gate is None else layer.gate.threshold,
        expected_share=evaluated / layer.total_width,
        lowest_frequency=min(frequencies, default=0.0),
        highest_frequency=max(frequencies, default=0.0),
    )


def _precision(bundle: Bundle, precision: Precision) -> PrecisionReport:
    manifest: Manifest = bundle.manifest
    experts = (expert.blobs[precision] for layer in manifest.layers for expert in layer.experts)
    graphs = [segment.graphs[precision] for segment in manifest.trunk.segments]
    return PrecisionReport(
        precision=precision,
        expert_bytes=_file_bytes(bundle, experts),
        trunk_bytes=_file_bytes(bundle, [blob for graph in graphs for blob in (graph.graph, graph.weights)]),
        resident_bytes=manifest.expert_bytes(precision),
    )


def _file_bytes(bundle: Bundle, blobs: Iterable[Blob]) -> int:
    try:
        return sum(bundle.blobs.path(blob.digest).stat().st_size for blob in blobs)
    except FileNotFoundError as error:
        raise BundleError(f"{error.filename} is missing; copy or convert the bundle again") from error


def _precision_table(precisions: Iterable[PrecisionReport]) -> Table:
    table = Table("precision", "experts MB", "trunk MB", "experts resident MB", title="bytes")
    for row in precisions:
        sizes = (row.expert_bytes, row.trunk_bytes, row.resident_bytes)
        table.add_row(row.precision, *(f"{size / _MEGABYTE:.1f}" for size in sizes))
    return table


def _layer_table(layers: Iterable[LayerReport]) -> Table:
    table = Table("layer", "routed", "width", "shared", "threshold", "share", "frequency", title="layers")
    for row in layers:
        table.add_row(
            str(row.index), str(row.experts), str(row.expert_width), str(row.shared_width),
            "-" if row.threshold is None else f"{np.float32(row.threshold):.4g}",
            f"{row.expected_share:.1%}", f"{row.lowest_frequency:.2f} .. {row.highest_frequency:.2f}",
        )  # fmt: skip
    return table


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1%}"


def _ratio(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}x"
