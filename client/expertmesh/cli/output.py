"""What commands print: JSON for programs, tables and colours for people, one place that decides which."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

PIPED_COLUMNS = 1000
"""Nothing is folded where a program reads; a terminal folds at its own width."""

MB = 1e6


def print_json(value: object) -> None:
    """One JSON document and a line break on standard output; dataclasses become objects, no number becomes null."""
    json.dump(_plain(value), sys.stdout, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def console() -> Console:
    """Standard output. Colours only on a terminal, and never with NO_COLOR."""
    width = None if sys.stdout.isatty() else PIPED_COLUMNS
    return Console(width=width, highlight=False, markup=False, emoji=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Sequence[str] = ()) -> None:
    """A table without lines; the columns named in `numbers` are aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in numbers else "left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console().print(table)


def megabytes(count_bytes: int) -> str:
    """Bytes in MB with one digit, e.g. `12.3`."""
    return f"{count_bytes / MB:.1f}"


def counted(count: int, noun: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _plain(value: object) -> object:
    """What JSON can hold; it knows neither infinity nor NaN."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
