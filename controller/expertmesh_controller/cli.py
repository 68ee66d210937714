"""`expertmesh controller` and `expertmesh up`."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from expertmesh_controller.gateway_cli import SpinUs
from expertmesh_controller.gateway_cli import register as register_gateway

Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="[NAME=]FOLDER", help="A model bundle to serve; may be given several times."),
]
TlsFolder = Annotated[
    Path | None, typer.Option("--tls", envvar="EXPERTMESH_TLS", help="Folder with ca.pem, cert.pem and key.pem.")
]
Token = Annotated[
    str | None, typer.Option("--token", envvar="EXPERTMESH_TOKEN", help="What every caller must present.")
]
Transport = Annotated[str | None, typer.Option("--transport", help="Expert channel: auto, grpc, unix or tcp.")]
Precision = Annotated[
    str | None, typer.Option("--precision", help="fp32 (default), fp16, bf16, int8 or int4; what the bundle has.")
]
Numerics = Annotated[
    str | None,
    typer.Option("--numerics", help="exact (default), or fast: the gateway holds the model, whole by default."),
]
LocalLayers = Annotated[
    str | None,
    typer.Option("--local-layers", help="With fast: these layers' experts only in the gateway: 0,3,8-11, or none."),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("up")(up)
    app.command("controller")(controller)
    register_gateway(app)


def controller(
    *,
    model: Models = None,
    listen: Annotated[str | None, typer.Option(help="host:port or unix:path; 127.0.0.1:7070 by default.")] = None,
    http_listen: Annotated[
        str | None, typer.Option(help="host:port of the OpenAI API, or off; ten ports above --listen by default.")
    ] = None,
    token: Token = None,
    tls: TlsFolder = None,
    store: Annotated[str | None, typer.Option(help="embedded (default), memory, or a redis:// URL.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the embedded store.")] = None,
    jobs: Annotated[str | None, typer.Option(help="on (default) or off: a job worker beside the controller.")] = None,
    models_folder: Annotated[Path | None, typer.Option(help="Where imports on the mesh leave their bundles.")] = None,
    precision: Precision = None,
    numerics: Numerics = None,
    local_layers: LocalLayers = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the trunk; 1 by default.")] = None,
    slots: Annotated[int | None, typer.Option(help="Answers in progress at once; 16 by default.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of prompt and answer; 2048 by default.")] = None,
    prefill_chunk: Annotated[int | None, typer.Option(help="Prompt tokens per step; 256 by default.")] = None,
    transport: Transport = None,
    spin_us: SpinUs = None,
    expected_workers: Annotated[int | None, typer.Option(help="Wait for them before the first placement.")] = None,
    metrics_listen: Annotated[
        str | None, typer.Option(help="host:port of /livez, /readyz and /metrics; auto (loopback, 7090) or off.")
    ] = None,
    otlp: Annotated[
        str | None, typer.Option(help="http://host:port that traces go to; as OTEL_EXPORTER_OTLP_ENDPOINT says.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(envvar="EXPERTMESH_CONFIG", help="TOML file with [controller], perhaps [[controller.models]]."),
    ] = None,
) -> None:
    """Run the controller: the gateway that serves models and the loop that places their experts."""
    from expertmesh_common.logs import setup_logs  # noqa: PLC0415
    from expertmesh_controller.process import run  # noqa: PLC0415 - onnxruntime loads only where it runs
    from expertmesh_controller.settings import read_settings  # noqa: PLC0415

    flags: dict[str, Any] = {
        "model": model, "listen": listen, "token": token, "tls": tls, "store": store, "precision": precision,
        "threads": threads, "slots": slots, "context_tokens": context, "prefill_chunk_tokens": prefill_chunk,
        "transport": transport, "data": data, "expected_workers": expected_workers, "http_listen": http_listen,
        "metrics_listen": metrics_listen, "otlp": otlp, "jobs": jobs, "models_folder": models_folder,
        "numerics": numerics, "local_layers": local_layers, "spin_us": spin_us,
    }  # fmt: skip
    setup_logs()
    run(read_settings(flags, os.environ, config))


def up(
    *,
    model: Models = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Worker processes on this machine; 0 only with --numerics fast.")
    ] = 3,
    gateways: Annotated[
        int, typer.Option(min=1, max=8, help="Gateways; those after the first are processes of their own.")
    ] = 1,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the controller; 0 takes any free one.")] = 7070,
    host: Annotated[str, typer.Option(help="Interface to listen on; 127.0.0.1 keeps other machines out.")] = "0.0.0.0",
    listen: Annotated[str | None, typer.Option(help="host:port or unix:path, instead of --host and --port.")] = None,
    http_port: Annotated[
        str | None, typer.Option(help="Port of the OpenAI API: a number, 0 for any free one, or off; 7080 by default.")
    ] = None,
    budget_share: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Each worker's memory, as a share of all experts.")
    ] = 0.6,
    precision: Precision = None,
    numerics: Numerics = None,
    local_layers: LocalLayers = None,
    transport: Transport = None,
    spin_us: SpinUs = None,
    token: Token = None,
    secure: Annotated[bool, typer.Option("--secure", help="Mutual TLS with a CA made here, and tokens.")] = False,
    tls: TlsFolder = None,
    store: Annotated[str | None, typer.Option(help="embedded (default), memory, or a redis:// URL.")] = None,
    jobs: Annotated[str, typer.Option(help="on or off: run a job worker beside the controller.")] = "on",
    threads: Annotated[int | None, typer.Option(help="Threads of the trunk.")] = None,
    slots: Annotated[int | None, typer.Option(help="Answers in progress at once.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where workers keep blobs; ~/.expertmesh/cache.")] = None,
    logs: Annotated[Path | None, typer.Option(help="Keep the processes' logs in this folder.")] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Written when the mesh serves: address, token and processes as JSON.")
    ] = None,
) -> None:
    """Serve models on this machine: one controller and its workers, until Ctrl-C."""
    from rich.console import Console  # noqa: PLC0415

    from expertmesh_common.socket_folders import socket_root  # noqa: PLC0415
    from expertmesh_common.usable_cores import usable_cores  # noqa: PLC0415
    from expertmesh_controller.local import polling  # noqa: PLC0415
    from expertmesh_controller.local.asking import UpFlags, up_request  # noqa: PLC0415 - quick --help
    from expertmesh_controller.local.up import up as run_up  # noqa: PLC0415

    shown = {"cores": usable_cores(), "workers": workers, "gateways": gateways, "threads": threads or 1}
    spin = _options({"--spin-us": polling.spin_us(spin_us, **shown)})
    shared = (*_options({"--threads": threads, "--slots": slots}), *spin)
    # Always said, because this process plans by them and a variable of the environment must not change its child.
    fusing = ("--numerics", numerics or "exact", "--local-layers", local_layers or "all")
    # Anybody can read arguments, and the URL of a store may hold its password.
    environment = dict(os.environ) if store is None else {**os.environ, "EXPERTMESH_STORE": store}
    flags = UpFlags(
        tuple(model or ()), workers, budget_share, listen or f"{host}:{port}", precision or "fp32", transport or "auto",
        token, secure, tls, cache, logs, (*shared, *fusing),
        gateways=gateways, http_port=http_port,
        gateway_options=shared, jobs=jobs, numerics=numerics or "exact", local_layers=local_layers or "",
        worker_options=spin,
    )  # fmt: skip
    # Sockets and other temporary files of all processes live and die in one folder.
    with tempfile.TemporaryDirectory(prefix="expertmesh-", dir=socket_root(), ignore_cleanup_errors=True) as folder:
        request = up_request(flags, Path(folder))
        asyncio.run(run_up(request, environment, Console(stderr=True, highlight=False, soft_wrap=True), ready_file))


def _options(given: Mapping[str, object]) -> tuple[str, ...]:
    """Flags that were given, as arguments of a child."""
    return tuple(part for name, value in given.items() if value is not None for part in (name, str(value)))
