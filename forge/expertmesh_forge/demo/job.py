"""The demo from beginning to end."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from threadpoolctl import threadpool_limits

from expertmesh.client import Client
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import Precision
from expertmesh_common.socket_folders import socket_root
from expertmesh_forge.checking import check_tokens
from expertmesh_forge.demo.asking import ask, settled_nodes
from expertmesh_forge.demo.bundle import DEMO_SOURCE, demo_bundle
from expertmesh_forge.demo.mesh import running_mesh
from expertmesh_forge.demo.report import RunReport, make_report, show_report, write_report

__all__ = ["DemoRequest", "run_demo"]


@dataclass(frozen=True, slots=True)
class DemoRequest:
    """What to ask, of how many workers, and where things go."""

    question: str
    max_tokens: int
    workers: int
    precision: Precision
    bundle_folder: Path
    report_path: Path


def run_demo(request: DemoRequest, console: Console) -> RunReport:
    """Convert if needed, serve, ask, check, report; leaves the bundle and the report, no process, no other file.

    Raises:
        ForgeError: the bundle or the mesh could not be made.
        ExpertmeshError: the mesh did not answer.

    """
    request.report_path.unlink(missing_ok=True)  # a failed run must not leave an old success behind
    with _terminating_cleanly():
        bundle = _bundle(request, console)
        with tempfile.TemporaryDirectory(prefix="expertmesh-demo-", dir=socket_root()) as folder:
            report = _serve_and_check(request, bundle, Path(folder), console)
    show_report(report, console)
    write_report(report, request.report_path)
    console.print(f"written: {request.report_path}")
    return report


def _bundle(request: DemoRequest, console: Console) -> Bundle:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        return demo_bundle(request.bundle_folder, _Stages(bar, console))


class _Stages:
    """Shows each stage of the conversion as a bar, or as a line where there is no terminal."""

    def __init__(self, bar: Progress, console: Console) -> None:
        self._bar = bar
        self._console = console
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(f"making the demo model: {stage}")
            if not self._console.is_terminal:
                self._console.print(f"making the demo model from {DEMO_SOURCE}: {stage}")
        self._bar.update(self._tasks[stage], completed=done, total=total)


def _serve_and_check(request: DemoRequest, bundle: Bundle, folder: Path, console: Console) -> RunReport:
    experts = sum(len(layer.experts) for layer in bundle.manifest.layers)
    console.print(
        f"starting 1 controller and {request.workers} workers for {bundle.manifest.name}: "
        f"{len(bundle.manifest.layers)} layers, {experts} routed experts"
    )
    serving = running_mesh(bundle.folder.resolve(), request.workers, request.precision, folder)
    with serving as mesh, Client(mesh.address) as client:
        console.print(f"[bold]> {request.question}[/bold]")
        answer = ask(client, request.question, request.max_tokens, lambda text: _write(console, text))
        console.print()
        nodes = settled_nodes(client)
    console.print("checking every token against the plain dense reference")
    # Many small products: on a busy machine the threads of numpy's library wait for each other ten times longer.
    with threadpool_limits(1):
        check = check_tokens(bundle, answer.prompt_ids, answer.completion.token_ids, request.precision)
    return make_report(answer, check, nodes, bundle.manifest.expert_bytes(request.precision))


def _write(console: Console, text: str) -> None:
    """Text of a model goes out as it is: no markup, no wrapping that waits for the end of a line."""
    console.file.write(text)
    console.file.flush()


@contextmanager
def _terminating_cleanly() -> Iterator[None]:
    """Let SIGTERM and a closed terminal unwind like Ctrl-C, so that every process and file is cleaned up."""

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the shape of a signal handler
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
