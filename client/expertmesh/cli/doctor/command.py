"""The command: run every check, print every line, end with 1 if something failed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from expertmesh.channel import DEFAULT_ADDRESS
from expertmesh.cli.connecting import Json, Server, TlsFolder, Token
from expertmesh.cli.doctor import machine, mesh, packages, ports
from expertmesh.cli.doctor.findings import Asked, Check, Finding, Level, exit_is_bad
from expertmesh.cli.failures import FAILED
from expertmesh.cli.output import console, print_json

GROUP = "expertmesh.doctor"
STYLES: dict[Level, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    *,
    store: Annotated[
        str | None, typer.Option(envvar="EXPERTMESH_STORE", help="A redis:// URL to try instead of the own store.")
    ] = None,
    as_json: Json = False,
    server: Server = DEFAULT_ADDRESS,
    token: Token = None,
    tls: TlsFolder = None,
) -> None:
    """Check this machine and the mesh.

    Each line says what to do. Ends with code 1 if a line says fail. That no mesh answers is a failure only if --server
    names one.
    """
    asked = Asked(server, token, tls, chosen=server != DEFAULT_ADDRESS, store=store)
    findings: list[Finding] = []
    screen = console()
    for finding in examined(asked, checks()):
        first = not findings or findings[-1].area != finding.area
        findings.append(finding)
        if not as_json:
            show(screen, finding, first_of_area=first)
    if as_json:
        print_json({"ok": not exit_is_bad(findings), "findings": findings})
    else:
        show_end(screen, findings)
    if exit_is_bad(findings):
        raise typer.Exit(FAILED)


def checks() -> Iterator[tuple[str, Check]]:
    """Every check with its area; those of packages that are not installed here are left out."""
    yield machine.AREA, machine.check
    yield packages.AREA, packages.check
    yield ports.AREA, ports.check
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            yield entry.name, entry.load()
        except ModuleNotFoundError:
            continue
    yield mesh.AREA, mesh.check


def examined(asked: Asked, to_run: Iterable[tuple[str, Check]]) -> Iterator[Finding]:
    """All findings; a check that breaks is a finding, and the others go on."""
    for area, check in to_run:
        try:
            yield from check(asked)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a machine, the doctor says it
            says = " ".join(f"{type(error).__name__}: {error}".split())
            yield Finding(area, "check", "fail", f"could not be done: {says}", "please report it")


def show(screen: Console, finding: Finding, *, first_of_area: bool) -> None:
    """One line, and a second one with the advice; the first of an area has its name above."""
    if first_of_area:
        screen.print(finding.area, style="bold")
    line = Text.assemble("  ", (finding.level.ljust(5), STYLES[finding.level]), f"{finding.name:<12} {finding.says}")
    screen.print(line, overflow="fold")
    if finding.advice:
        screen.print(Text(f"       -> {finding.advice}"), overflow="fold")


def show_end(screen: Console, findings: list[Finding]) -> None:
    """The count of each level."""
    counts = {level: sum(f.level == level for f in findings) for level in STYLES}
    screen.print("\n" + ", ".join(f"{count} {level}" for level, count in counts.items()))
