"""`expertmesh model import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expertmesh.channel import DEFAULT_ADDRESS
from expertmesh.cli.connecting import Server, TlsFolder, Token, connect
from expertmesh.errors import InvalidRequest
from expertmesh_forge.importing.on_mesh import MeshImport, import_on_mesh
from expertmesh_forge.progress import progress_bars

if TYPE_CHECKING:
    from expertmesh_common.bundle.manifest import Precision
    from expertmesh_forge.importing.importer import Imported

__all__ = ["import_model", "parse_precisions"]


def import_model(
    checkpoint: Annotated[
        Path, typer.Argument(help="A Hugging Face MoE checkpoint (a folder), or a .gguf file of one.")
    ],
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the new bundle; a bundle that is there is replaced at the end.")
    ] = None,
    precisions: Annotated[str, typer.Option(help="Comma-separated: fp32, fp16, bf16, int8, int4.")] = "fp32,int4",
    name: Annotated[str | None, typer.Option(help="Name of the model; default: the folder's or file's.")] = None,
    context_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest text to serve; default: the longest that is served exactly.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over instead of going on with an interrupted import.")
    ] = False,
    on_mesh: Annotated[
        bool,
        typer.Option("--on-mesh", help="As a job of a mesh; the folder is on its controller's machine."),
    ] = False,
    watch: Annotated[bool, typer.Option(help="With --on-mesh: follow the job until it has ended.")] = True,
    server: Server = DEFAULT_ADDRESS,
    token: Token = None,
    tls: TlsFolder = None,
) -> None:
    """Write a mixture-of-experts checkpoint, from Hugging Face or GGUF, as a bundle, expert by expert.

    Neither torch nor transformers is needed. When an import was interrupted, the same command goes on where it ended.
    """
    if on_mesh:
        asked = MeshImport(checkpoint, name or "", parse_precisions(precisions), context_tokens or 0, fresh=fresh)
        return import_on_mesh(asked, out, connect(server, token, tls), watch=watch)
    if out is None:
        raise InvalidRequest("--out is missing: name the folder of the new bundle, or import with --on-mesh")
    # The toolchain's libraries take a second to import; --help need not wait for them.
    from expertmesh.cli.failures import INTERRUPTED  # noqa: PLC0415
    from expertmesh_forge.importing import importer  # noqa: PLC0415

    request = importer.ImportRequest(checkpoint, out, parse_precisions(precisions), name, context_tokens, fresh)
    try:
        with progress_bars() as on_progress:
            done = importer.import_checkpoint(request, on_progress)
    except KeyboardInterrupt:
        typer.echo(
            "interrupted: the same command goes on with the layers that are finished, --fresh starts over", err=True
        )
        raise typer.Exit(INTERRUPTED) from None
    return _say(out, done)


def _say(out: Path, done: Imported) -> None:
    from expertmesh_forge.importing.resume import leftovers  # noqa: PLC0415

    manifest = done.manifest
    moe = [layer for layer in manifest.layers if layer.experts]
    experts = f"{sum(len(layer.experts) for layer in moe)} experts in {len(moe)} of {len(manifest.layers)} layers"
    typer.echo(f"{out}: {manifest.name} ({manifest.family}), {experts}, {', '.join(manifest.precisions)}")
    if done.resumed_steps:
        typer.echo(f"went on with an earlier import: {done.resumed_steps} segments were finished")
    for note in done.notes:
        typer.echo(f"note: {note}")
    for left in leftovers(out):
        typer.echo(f"note: an import with other settings was not finished; delete {left} if it is not wanted")


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """A comma-separated list, each one once.

    Raises:
        UnsupportedModel: a name is none of a precision, or there is none.

    """
    from expertmesh_common.bundle.manifest import PRECISIONS  # noqa: PLC0415
    from expertmesh_forge.errors import UnsupportedModel  # noqa: PLC0415

    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name not in PRECISIONS]
    if wrong or not names:
        raise UnsupportedModel(f"--precisions {text!r}: allowed are {', '.join(PRECISIONS)}, separated by commas")
    return tuple(known for known in PRECISIONS if known in names)
