"""The folder in which an import grows, and the journal by which the next run goes on where this one ended.

`.NAME.KEY.import` lies beside the bundle that it will become. KEY names the source and the settings, so that a run with
others starts its own. A journal line is one finished layer; it counts only if every blob that it names is still whole.
"""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError

from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.bundle.parts import Blob, Frozen, Layer, Segment
from expertmesh_common.errors import CorruptData, NotHere
from expertmesh_forge.errors import BundleError

__all__ = ["Growing", "Step", "growing", "leftovers"]

_SUFFIX = ".import"
_JOURNAL = "journal.jsonl"


class Step(Frozen):
    """A finished segment of the trunk with the layer that follows it; the head has none."""

    segment: Segment
    layer: Layer | None

    def blobs(self) -> tuple[Blob, ...]:
        graphs = [blob for graph in self.segment.graphs.values() for blob in (graph.graph, graph.weights)]
        if self.layer is None:
            return tuple(graphs)
        gate = [self.layer.gate.weights] if self.layer.gate else []
        experts = [blob for expert in self.layer.experts for blob in expert.blobs.values()]
        return (*graphs, *gate, *experts)


class Growing:
    """An import under way: its blobs, and the steps that are done."""

    def __init__(self, folder: Path, journal: TextIO) -> None:
        self.folder = folder
        self.blobs = BlobStore(folder / "blobs")
        self._journal = journal
        self.done: dict[int, Step] = {}

    def recall(self, on_check: Callable[[int, int], None]) -> None:
        """Find the steps that earlier runs finished and whose blobs are all still whole."""
        text = self._journal.read()
        if text and not text.endswith("\n"):
            self._journal.write("\n")  # or the next step would be lost in the line that was cut short
        lines = text.splitlines()
        for number, line in enumerate(lines, 1):
            step = self._whole_step(line)
            if step is not None:
                self.done[step.segment.index] = step
            on_check(number, len(lines))

    def finish(self, step: Step) -> None:
        """Note a step whose blobs are all written."""
        self.done[step.segment.index] = step
        self._journal.write(step.model_dump_json() + "\n")
        self._journal.flush()

    def tidy(self, wanted: set[str]) -> None:
        """Leave nothing but the blobs named: what follows is the bundle as it will stand."""
        for path in self.blobs.folder.iterdir():
            if path.name not in wanted:
                path.unlink()
        (self.folder / _JOURNAL).unlink()

    def _whole_step(self, line: str) -> Step | None:
        try:
            step = Step.model_validate_json(line)
        except ValidationError:
            return None  # a line that was cut short: that step is done again
        whole = [self._is_whole(blob) for blob in step.blobs()]
        return step if all(whole) else None

    def _is_whole(self, blob: Blob) -> bool:
        try:
            self.blobs.verified(blob.digest)
        except (CorruptData, NotHere):
            # Out of the way: a blob that is there already would not be written again.
            self.blobs.path(blob.digest).unlink(missing_ok=True)
            return False
        return True


@contextmanager
def growing(bundle: Path, key: str, *, fresh: bool) -> Iterator[Growing]:
    """The import of `key` into `bundle`, begun or gone on with; `fresh` drops what earlier runs left.

    Raises:
        BundleError: another process is importing the same thing into the same place.

    """
    bundle.parent.mkdir(parents=True, exist_ok=True)
    if fresh:
        _drop_leftovers(bundle)
    folder = bundle.parent / f".{bundle.name}.{key[:12]}{_SUFFIX}"
    folder.mkdir(exist_ok=True)
    with (folder / _JOURNAL).open("a+", encoding="utf-8") as journal:
        _claim(journal, bundle)
        journal.seek(0)
        yield Growing(folder, journal)


def _drop_leftovers(bundle: Path) -> None:
    for left in leftovers(bundle):
        with (left / _JOURNAL).open("a", encoding="utf-8") as journal:
            _claim(journal, bundle)
            shutil.rmtree(left)


def _claim(journal: TextIO, bundle: Path) -> None:
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BundleError(f"another process is importing into {bundle}; wait for it, or stop it first") from None


def leftovers(bundle: Path) -> list[Path]:
    """Folders that imports into `bundle` left and that are not finished."""
    bundle = bundle.resolve()
    # Not by a pattern of the file system: `.model.*` would take those of a neighbour that is called model.v2 as well.
    own = re.compile(rf"\.{re.escape(bundle.name)}\.[0-9a-f]{{12}}{re.escape(_SUFFIX)}")
    return sorted(path for path in bundle.parent.glob(f".*{_SUFFIX}") if own.fullmatch(path.name) and path.is_dir())
