"""`expertmesh controller` and `expertmesh up`."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[Path | None, typer.Option("--model", help="Folder of the model bundle to serve.")]
TlsFolder = Annotated[
    Path | None, typer.Option("--tls", envvar="EXPERTMESH_TLS", help="Folder with ca.pem, cert.pem and key.pem.")
]
Token = Annotated[
    str | None, typer.Option("--token", envvar="EXPERTMESH_TOKEN", help="What every caller must present.")
]
Transport = Annotated[str | None, typer.Option("--transport", help="Expert channel: auto, grpc, unix or tcp.")]
Precision = Annotated[str | None, typer.Option("--precision", help="fp32 (default) or int4.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("up")(up)
    app.command("controller")(controller)


def controller(
    *,
    model: Model = None,
    listen: Annotated[str | None, typer.Option(help="host:port or unix:path; 127.0.0.1:7070 by default.")] = None,
    token: Token = None,
    tls: TlsFolder = None,
    store: Annotated[str | None, typer.Option(help="embedded (default), memory, or a redis:// URL.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the embedded store.")] = None,
    precision: Precision = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the trunk; 1 by default.")] = None,
    slots: Annotated[int | None, typer.Option(help="Answers in progress at once; 16 by default.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of prompt and answer; 2048 by default.")] = None,
    prefill_chunk: Annotated[int | None, typer.Option(help="Prompt tokens per step; 256 by default.")] = None,
    transport: Transport = None,
    expected_workers: Annotated[int | None, typer.Option(help="Wait for them before the first placement.")] = None,
    config: Annotated[
        Path | None, typer.Option(envvar="EXPERTMESH_CONFIG", help="TOML file with a [controller] table.")
    ] = None,
) -> None:
    """Run the controller: the gateway that serves the model and the loop that places its experts."""
    from expertmesh_common.logs import setup_logs  # noqa: PLC0415
    from expertmesh_controller.process import run  # noqa: PLC0415 - onnxruntime loads only where it runs
    from expertmesh_controller.settings import read_settings  # noqa: PLC0415

    flags: dict[str, Any] = {
        "model": model, "listen": listen, "token": token, "tls": tls, "store": store, "precision": precision,
        "threads": threads, "slots": slots, "context_tokens": context, "prefill_chunk_tokens": prefill_chunk,
        "transport": transport, "data": data, "expected_workers": expected_workers,
    }  # fmt: skip
    setup_logs()
    run(read_settings(flags, os.environ, config))


def up(
    *,
    model: Model = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes on this machine.")] = 3,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the controller; 0 takes any free one.")] = 7070,
    host: Annotated[str, typer.Option(help="Interface to listen on; 127.0.0.1 keeps other machines out.")] = "0.0.0.0",
    listen: Annotated[str | None, typer.Option(help="host:port or unix:path, instead of --host and --port.")] = None,
    budget_share: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Each worker's memory, as a share of all experts.")
    ] = 0.6,
    precision: Precision = None,
    transport: Transport = None,
    token: Token = None,
    secure: Annotated[bool, typer.Option("--secure", help="Mutual TLS with a development CA made here.")] = False,
    tls: TlsFolder = None,
    store: Annotated[str | None, typer.Option(help="embedded (default), memory, or a redis:// URL.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the trunk.")] = None,
    slots: Annotated[int | None, typer.Option(help="Answers in progress at once.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where workers keep blobs; ~/.expertmesh/cache.")] = None,
    logs: Annotated[Path | None, typer.Option(help="Keep the processes' logs in this folder.")] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Written when the mesh serves: address, token and processes as JSON.")
    ] = None,
) -> None:
    """Serve a model on this machine: one controller and its workers, until Ctrl-C."""
    from rich.console import Console  # noqa: PLC0415

    from expertmesh_common.socket_folders import socket_root  # noqa: PLC0415
    from expertmesh_controller.local.asking import UpFlags, up_request  # noqa: PLC0415 - quick --help
    from expertmesh_controller.local.up import up as run_up  # noqa: PLC0415

    given = {"--threads": threads, "--slots": slots}
    # Anybody can read arguments, and the URL of a store may hold its password.
    environment = dict(os.environ) if store is None else {**os.environ, "EXPERTMESH_STORE": store}
    options = tuple(part for name, value in given.items() if value is not None for part in (name, str(value)))
    flags = UpFlags(
        model, workers, budget_share, listen or f"{host}:{port}", precision or "fp32", transport or "auto", token,
        secure, tls, cache, logs, options,
    )  # fmt: skip
    # Sockets and other temporary files of all processes live and die in one folder.
    with tempfile.TemporaryDirectory(prefix="expertmesh-", dir=socket_root(), ignore_cleanup_errors=True) as folder:
        request = up_request(flags, Path(folder))
        asyncio.run(run_up(request, environment, Console(stderr=True, highlight=False, soft_wrap=True), ready_file))
