"""`make bench`: every benchmark in turn, then one table of the ratios against their bars."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from interleaving import RESULTS
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
NAMES = ("hop", "fanout", "layer", "decode", "served", "batching", "mesh", "recovery")
BUNDLE = Path("build/demo-bundle")
PAGE = HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"


def run(name: str) -> None:
    print(f"== {name}", flush=True)
    # Its servers end before its clients, which the library would tell of.
    quiet = {**os.environ, "GRPC_VERBOSITY": "ERROR"}
    subprocess.run([sys.executable, str(HERE / f"bench_{name}.py")], check=True, stdout=subprocess.DEVNULL, env=quiet)


def write_page(found: list[tuple[str, str, str, bool]]) -> None:
    """Put the table between the marks of docs/performance.md."""
    lines = ["| ratio | median (least - greatest) | bar | met |", "|---|---|---|---|"]
    lines += [f"| {what} | {shown} | {limit} | {'yes' if met else '**no**'} |" for what, shown, limit, met in found]
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)


def rows() -> Iterator[tuple[str, str, str, bool]]:
    """(what, measured with its spread, bar, met)."""
    for name in NAMES:
        path = RESULTS / f"{name}.json"
        if path.exists():
            yield from _ratios(name, json.loads(path.read_text()))


def _ratios(name: str, result: dict) -> Iterator[tuple[str, str, str, bool]]:
    for bar in result.get("ratios", ()):
        value = bar["value"]
        met = value["median"] <= bar["at_most"] if "at_most" in bar else value["median"] >= bar["at_least"]
        limit = f"<= {bar['at_most']}" if "at_most" in bar else f">= {bar['at_least']}"
        shown = f"{value['median']:.2f} ({value['least']:.2f} - {value['greatest']:.2f})"
        yield f"{name}: {bar['what']}", shown, limit, met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these; all by default")
    parser.add_argument("--write-page", action="store_true", help="put the table into docs/performance.md")
    options = parser.parse_args()
    if not BUNDLE.exists():
        sys.exit(f"{BUNDLE} is missing: `make run` builds it")
    wrong = [name for name in options.names if name not in NAMES]
    if wrong:
        parser.error(f"no benchmark {', '.join(wrong)}; there are {', '.join(NAMES)}")
    for name in options.names or NAMES:
        run(name)
    table = Table("ratio", "median (least - greatest)", "bar", "met")
    found = list(rows())
    for what, shown, limit, met in found:
        table.add_row(what, shown, limit, "yes" if met else "NO")
    Console().print(table)
    if options.write_page:
        write_page(found)


if __name__ == "__main__":
    main()
