"""Under which licence a checkpoint says it is."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["read_licence"]

_UNKNOWN = "not stated"


def read_licence(folder: Path) -> str:
    """The `license` of the model card's front matter, else the name of a licence file, else "not stated"."""
    card = folder / "README.md"
    if card.is_file():
        front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        said = dict(re.findall(r"^(license\w*):[ \t]*(\S+)", front[1], re.MULTILINE)) if front else {}
        if said:
            name: str = said.get("license", "other")
            return str(said.get("license_name", name)) if name == "other" else name
    files = sorted(path.name for path in folder.glob("LICEN[CS]E*"))
    return f"see {files[0]} of the source" if files else _UNKNOWN
