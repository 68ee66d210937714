"""`expertmesh certs`: the certificates of a mesh. It lies here because it needs more than the SDK may carry."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from expertmesh.cli import failures
from expertmesh.cli.connecting import Json
from expertmesh.cli.output import print_json
from expertmesh.tls_diagnosis import refusal

Folder = Annotated[Path, typer.Argument(help="Folder with ca.pem, cert.pem and key.pem.")]
Hosts = Annotated[list[str] | None, typer.Option("--host", help="A name or address that it is for; may be repeated.")]
Days = Annotated[int, typer.Option(min=1, max=3650, help="How long it is good.")]
Authority = Annotated[
    Path | None, typer.Option(help="Folder of the authority's key; by default beside FOLDER, called FOLDER.authority.")
]


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(help="Certificates: make, show and renew them.", no_args_is_help=True)
    group.command("init")(init)
    group.command("show")(show)
    group.command("renew")(renew)
    app.add_typer(group, name="certs")


def init(folder: Folder, *, host: Hosts = None, days: Days = 365, authority: Authority = None) -> None:
    """Make an authority and a first certificate; with --authority, a certificate of one that is there.

    The folder is what every part of the mesh gets with --tls. The authority's key stays beside it.
    """
    from expertmesh_common.certificates import authority_folder, issue, mint_development_ca  # noqa: PLC0415
    from expertmesh_common.errors import Precondition  # noqa: PLC0415 - cryptography is slow to import

    if (folder / "cert.pem").exists():
        raise Precondition(f"{folder} has a certificate already: `expertmesh certs renew` gives it a new one")
    if authority is None:
        mint_development_ca(folder, host or (), days)
        sys.stdout.write(f"authority: {authority_folder(folder)} (keep it here, it can make certificates)\n")
    else:
        issue(authority, folder, host or (), days)
    sys.stdout.write(f"certificate: {folder} (copy it to each machine and name it with --tls)\n")


def show(
    folder: Folder,
    *,
    server: Annotated[str, typer.Option("--server", help="Also try these certificates on a server, host:port.")] = "",
    as_json: Json = False,
) -> None:
    """What a certificate says and whether it is good; exit code 4 if it is not."""
    from expertmesh_common.certificate_facts import facts_of  # noqa: PLC0415 - cryptography is slow to import
    from expertmesh_common.tls import TlsFiles  # noqa: PLC0415

    files = TlsFiles.in_folder(folder)
    facts = facts_of(files)
    problem = facts.problem or (refusal(server, files) if server else None)
    if as_json:
        print_json({"folder": str(folder), "facts": facts, "problem": problem})
    else:
        sys.stdout.write(
            f"for:        {', '.join(facts.hosts)}\n"
            f"good until: {facts.until} ({facts.days_left} days)\n"
            f"authority:  {facts.authority}, good until {facts.authority_until}\n"
            f"sha256:     {facts.fingerprint}\n"
            f"verdict:    {problem or 'good'}\n"
        )
    if problem is not None:
        raise typer.Exit(failures.REFUSED)


def renew(folder: Folder, *, host: Hosts = None, days: Days = 365, authority: Authority = None) -> None:
    """Give the key in FOLDER a new certificate; running servers take it for new connections, without a restart."""
    from expertmesh_common.certificate_facts import facts_of  # noqa: PLC0415 - cryptography is slow to import
    from expertmesh_common.certificates import renew as renew_files  # noqa: PLC0415

    facts = facts_of(renew_files(folder, host or (), authority, days))
    sys.stdout.write(f"{folder} is good until {facts.until}\n")
