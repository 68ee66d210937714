"""`make bench`: every benchmark in turn, then one table of the ratios against their bars."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from interleaving import RESULTS
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
NAMES = ("hop", "fanout", "decode", "batching", "mesh")
BUNDLE = Path("build/demo-bundle")


def run(name: str) -> None:
    print(f"== {name}", flush=True)
    subprocess.run([sys.executable, str(HERE / f"bench_{name}.py")], check=True, stdout=subprocess.DEVNULL)


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
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], help="only these; all by default")
    options = parser.parse_args()
    if not BUNDLE.exists():
        sys.exit(f"{BUNDLE} is missing: `make run` builds it")
    for name in options.names or NAMES:
        run(name)
    table = Table("ratio", "median (least - greatest)", "bar", "met")
    for what, shown, limit, met in rows():
        table.add_row(what, shown, limit, "yes" if met else "NO")
    Console().print(table)


if __name__ == "__main__":
    main()
