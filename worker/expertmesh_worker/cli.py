"""`expertmesh worker`."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated

import typer

from expertmesh_common.channel.spinning import MAX_SPIN_US


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("worker")(worker)


def worker(
    *,
    join: Annotated[str, typer.Option(envvar="EXPERTMESH_JOIN", help="host:port of the controller.")],
    token: Annotated[
        str | None, typer.Option(envvar="EXPERTMESH_TOKEN", help="What the controller demands; callers need it too.")
    ] = None,
    worker_id: Annotated[
        str | None, typer.Option("--id", envvar="EXPERTMESH_WORKER_ID", help="Name of this worker; the host's name.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Memory for experts, such as 96MB or 1GiB; 60 % of what is free.")
    ] = None,
    tls: Annotated[
        Path | None, typer.Option(envvar="EXPERTMESH_TLS", help="Folder with ca.pem, cert.pem and key.pem.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option(help="host:port for gateways; any free port on the side of the controller.")
    ] = None,
    stream_port: Annotated[
        int,
        typer.Option(min=0, max=65535, help="TCP port of expert streams, to open in a firewall; 0 is any free one."),
    ] = 0,
    advertise: Annotated[str | None, typer.Option(help="Host that gateways dial, if not that of --listen.")] = None,
    cache: Annotated[
        Path | None, typer.Option(envvar="EXPERTMESH_CACHE", help="Where fetched blobs are kept; ~/.expertmesh/cache.")
    ] = None,
    cache_limit: Annotated[
        str | None,
        typer.Option(help="Most that the cache may take, such as 20GB; what it has and 80 % of the free disk."),
    ] = None,
    provider: Annotated[str, typer.Option(help="Who computes: cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, max=256, help="Frames computed at once.")] = 1,
    spin_us: Annotated[
        int,
        typer.Option(
            min=0,
            max=MAX_SPIN_US,
            help="Microseconds to poll for the next request before sleeping. Only with a core for every process.",
        ),
    ] = 0,
    declared_speed: Annotated[
        float | None, typer.Option(min=1.0, help="Rows per second to report instead of the measured ones.")
    ] = None,
    metrics_listen: Annotated[
        str, typer.Option(help="host:port of /livez, /readyz and /metrics; auto (any free port, loopback) or off.")
    ] = "auto",
    otlp: Annotated[
        str | None, typer.Option(help="http://host:port that traces go to; as OTEL_EXPORTER_OTLP_ENDPOINT says.")
    ] = None,
) -> None:
    """Run a worker: it joins a controller, loads the experts it is told to, and computes them."""
    from expertmesh_common.logs import setup_logs  # noqa: PLC0415 - onnxruntime loads only where it runs
    from expertmesh_worker.process import run  # noqa: PLC0415
    from expertmesh_worker.settings import WorkerSettings, parse_bytes  # noqa: PLC0415

    setup_logs()
    run(
        WorkerSettings(
            join=join,
            worker_id=worker_id or platform.node(),
            cache=cache or Path.home() / ".expertmesh" / "cache",
            token=token or None,
            tls=tls,
            budget_bytes=None if budget is None else parse_bytes(budget),
            cache_limit_bytes=None if cache_limit is None else parse_bytes(cache_limit),
            listen=listen,
            stream_port=stream_port,
            advertise=advertise,
            provider=provider,
            threads=threads,
            spin_us=spin_us,
            declared_speed=declared_speed,
            metrics_listen=metrics_listen,
            otlp=otlp,
        )
    )
