"""`expertmesh gateway`."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from expertmesh_common.channel.spinning import MAX_SPIN_US

SpinUs = Annotated[
    int | None,
    typer.Option(
        "--spin-us", min=0, max=MAX_SPIN_US, envvar="EXPERTMESH_SPIN_US",
        help="Microseconds to poll for experts before sleeping; 0, with `up` 1000 if every process has a core.",
    ),
]  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("gateway")(gateway)


def gateway(
    *,
    join: Annotated[str, typer.Option(envvar="EXPERTMESH_JOIN", help="host:port of the controller.")],
    listen: Annotated[str | None, typer.Option(help="host:port or unix:path; 127.0.0.1:7071 by default.")] = None,
    http_listen: Annotated[
        str | None, typer.Option(help="host:port of the OpenAI API, or off; ten ports above --listen by default.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="EXPERTMESH_TOKEN", help="What the controller demands of those who join.")
    ] = None,
    tls: Annotated[
        Path | None, typer.Option(envvar="EXPERTMESH_TLS", help="Folder with ca.pem, cert.pem and key.pem.")
    ] = None,
    gateway_id: Annotated[str | None, typer.Option("--id", help="Name of this gateway; host name and process.")] = None,
    model: Annotated[
        list[Path] | None, typer.Option("--model", help="Folder of a bundle that need not be fetched; may be repeated.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Where fetched bundles are kept; ~/.expertmesh/gateway.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each trunk; 1 by default.")] = None,
    slots: Annotated[int | None, typer.Option(help="Answers in progress at once; 16 by default.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of prompt and answer; 2048 by default.")] = None,
    prefill_chunk: Annotated[int | None, typer.Option(help="Prompt tokens per step; 256 by default.")] = None,
    transport: Annotated[str | None, typer.Option(help="Expert channel: auto, grpc, unix or tcp.")] = None,
    spin_us: SpinUs = None,
    metrics_listen: Annotated[
        str | None, typer.Option(help="host:port of /livez, /readyz, /metrics; auto (any free port, loopback) or off.")
    ] = None,
    otlp: Annotated[
        str | None, typer.Option(help="http://host:port that traces go to; as OTEL_EXPORTER_OTLP_ENDPOINT says.")
    ] = None,
) -> None:
    """Run one more gateway: it serves what the controller serves, and goes on when that is away.

    Clients that know several gateways use the others when one is gone: EXPERTMESH_ADDRESS=one:7070,two:7071.

    Example: expertmesh gateway --join 10.0.0.5:7070 --token em_... --listen 0.0.0.0:7071
    """
    from expertmesh.local_access import home_folder  # noqa: PLC0415 - quick --help
    from expertmesh_common.logs import setup_logs  # noqa: PLC0415
    from expertmesh_controller.gateway_process import run  # noqa: PLC0415 - onnxruntime loads only where it runs
    from expertmesh_controller.gateway_settings import gateway_settings  # noqa: PLC0415

    flags: dict[str, Any] = {
        "join": join, "listen": listen, "http_listen": http_listen, "token": token or None, "tls": tls,
        "gateway_id": gateway_id or f"{platform.node()}-{os.getpid()}", "models": tuple(model or ()),
        "cache": cache or home_folder() / "gateway", "threads": threads, "slots": slots, "context_tokens": context,
        "prefill_chunk_tokens": prefill_chunk, "transport": transport, "spin_us": spin_us,
        "metrics_listen": metrics_listen, "otlp": otlp,
    }  # fmt: skip
    setup_logs()
    run(gateway_settings(flags))
