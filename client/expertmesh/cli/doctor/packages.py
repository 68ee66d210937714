"""Python and the packages of each role: complete, absent, or half there."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

from expertmesh.cli.doctor.findings import Asked, Finding
from expertmesh.version import __version__

AREA = "packages"
OLDEST_PYTHON = (3, 11)
ROLES = {"controller": "serve models (up, controller)", "worker": "run a worker", "forge": "convert models"}

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")


def check(asked: Asked) -> Iterator[Finding]:  # noqa: ARG001 - every check has this form
    """Versions, and what is missing for which role."""
    good = sys.version_info[:2] >= OLDEST_PYTHON
    advice = "" if good else "expertmesh needs Python 3.11 or newer"
    yield Finding(AREA, "python", "ok" if good else "fail", platform.python_version(), advice)
    yield Finding(AREA, "expertmesh", "ok", __version__)
    yield from roles(metadata.requires("expertmesh") or (), _installed)


def roles(requirements: Sequence[str], installed: Callable[[str], str | None]) -> Iterator[Finding]:
    """A line per role; a role of which most is missing is not wanted here."""
    base = {*_names(requirements, ""), *_names(requirements, "cli"), *_names(requirements, "serving")}
    for role, what_for in ROLES.items():
        names = _names(requirements, role)
        own = [name for name in names if name not in base]
        missing = [name for name in names if installed(name) is None]
        if not missing:
            says = f"all {len(names)} packages: {', '.join(f'{name} {installed(name)}' for name in own)}"
            yield Finding(AREA, role, "ok", says)
        elif 2 * len([name for name in own if name in missing]) > len(own):
            yield Finding(AREA, role, "ok", f"not installed, which is only needed to {what_for}")
        else:
            advice = f"to {what_for}: pip install 'expertmesh[{role}]'"
            yield Finding(AREA, role, "warn", f"incomplete: {', '.join(missing)} missing", advice)


def _names(requirements: Sequence[str], extra: str) -> list[str]:
    """Distributions that an extra ("" for none) brings, those of the extras it names included."""
    found: list[str] = []
    for requirement in requirements:
        head, _, condition = requirement.partition(";")
        wanted = _EXTRA.search(condition)
        if (wanted[1] if wanted else "") != extra or "win32" in condition.replace("!= 'win32'", ""):
            continue
        name = _NAME.match(head.strip())
        if name is not None and name[0] != "expertmesh":
            found.append(name[0])
        elif "[" in head:
            inner = head.partition("[")[2].partition("]")[0]
            found += [n for part in inner.split(",") for n in _names(requirements, part.strip())]
    return list(dict.fromkeys(found))


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
