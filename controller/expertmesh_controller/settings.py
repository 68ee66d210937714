"""Settings of the controller, read once when it starts: flags before environment before file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from expertmesh.local_access import home_folder
from expertmesh_common.bundle.manifest import Numerics, Precision
from expertmesh_common.channel.spinning import MAX_SPIN_US
from expertmesh_common.errors import InvalidInput
from expertmesh_controller.cluster.local_layers import ALL, checked_ranges
from expertmesh_controller.model_settings import ENVIRONMENT_SEPARATOR, ModelSettings, with_models

ENVIRONMENT_PREFIX = "EXPERTMESH_"
TABLE = "controller"

Transport = Literal["auto", "grpc", "unix", "tcp"]


class ControllerSettings(BaseModel):
    """Everything a controller process is told from outside."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: Annotated[tuple[ModelSettings, ...], Field(min_length=1)]
    """The bundles to serve; `model` is the short form: a folder, or several, each perhaps as NAME=FOLDER."""
    listen: str = "127.0.0.1:7070"
    """`host:port` or `unix:path`; loopback by default, because a wider one needs a token."""
    http_listen: str | None = None
    """Where the OpenAI door is: `host:port`, `off`, or None for ten ports above `listen`."""
    token: Annotated[str | None, Field(min_length=1)] = None
    """What every caller must present; None lets everybody in who can connect."""
    join_token: Annotated[str | None, Field(min_length=1)] = None
    """What workers and gateways may present instead: em_<id>_<secret>, several with commas; they can join, no more."""
    tls: Path | None = None
    """Folder with ca.pem, cert.pem and key.pem; None is plain text."""
    store: str = "embedded"
    """`embedded` (a private valkey-server), `memory`, or a redis:// URL."""
    data: Path | None = None
    """Folder of the embedded store; None takes one per listening address in the user's expertmesh folder."""
    jobs: Literal["on", "off"] = "on"
    """Whether a job worker runs beside the controller; a store in memory has none either way."""
    models_folder: Path | None = None
    """Where background imports leave their bundles; None is `models` in the data folder."""
    precision: Precision = "fp32"
    """Of trunk and experts, for models that say nothing else; fp32 equals the dense reference."""
    numerics: Numerics = "exact"
    """For models that say nothing else; `fast` runs a whole model as one graph in each gateway, without workers."""
    local_layers: str = ALL
    """The layers whose experts a gateway holds, for models with these numerics: `0,3,8-11` or `none`; empty is all."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Of each trunk. More than the free cores makes every token slower."""
    slots: Annotated[int, Field(ge=1, le=1024)] = 16
    """Answers in progress at once, per model that says nothing else; each holds keys and values for a whole context."""
    context_tokens: Annotated[int, Field(ge=16)] = 2048
    """Prompt and answer together; the model's own limit if that is lower."""
    prefill_chunk_tokens: Annotated[int, Field(ge=1)] = 256
    """Prompt tokens per step; smaller steps disturb running answers less."""
    transport: Transport = "auto"
    """Of the expert channel; auto takes unix sockets on one host and TCP between hosts, gRPC where neither works."""
    spin_us: Annotated[int, Field(ge=0, le=MAX_SPIN_US)] = 0
    """How long workers' sockets are polled for a reply before sleeping; only with a core for every process."""
    expected_workers: Annotated[int, Field(ge=0)] = 0
    """The first placement waits for this many workers, so that it need not be changed at once; 0 is unknown."""
    metrics_listen: str = "auto"
    """Where metrics and probes are: `host:port`, `auto` (loopback, 7090 if it is free) or `off`."""
    otlp: str | None = None
    """Where traces go; None takes what OpenTelemetry's own variables say, by default nowhere."""
    drain_s: Annotated[float, Field(ge=0)] = 5.0
    """How long running answers may go on after a signal to end."""


SECRETS = ("token", "join_token", "store")


def read_settings(flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None) -> ControllerSettings:
    """Merge the three sources; a flag that is None was not given.

    Raises:
        InvalidInput: the file cannot be read, or a value is missing, unknown or out of range.

    """
    merged = {**with_models(_from_file(file)), **with_models(_from_environment(environment), ENVIRONMENT_SEPARATOR)}
    merged.update(with_models({name: value for name, value in flags.items() if value is not None}))
    try:
        settings = ControllerSettings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if name == "models" and first["type"] in {"missing", "too_short"}:
            raise InvalidInput("setting 'model' is missing: name the folder of a model bundle") from error
        # For a missing field pydantic's input is the whole table, and tokens and store URLs are secrets anyway.
        shown = "" if first["type"] == "missing" or name in SECRETS else f" (got {first['input']!r})"
        raise InvalidInput(f"setting {name!r}: {first['msg']}{shown}") from error
    checked_ranges(settings.local_layers, settings.numerics)
    return settings


def data_folder(settings: ControllerSettings) -> Path:
    """Where the embedded store keeps its data: two controllers of one user must not share it."""
    if settings.data is not None:
        return settings.data
    return home_folder() / "data" / re.sub(r"[^A-Za-z0-9.-]+", "_", settings.listen)


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    names = ("model", *(name for name in ControllerSettings.model_fields if name != "models"))
    named = {name: f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in names}
    return {name: environment[variable] for name, variable in named.items() if variable in environment}


def _from_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8")).get(TABLE, {})
    except OSError as error:
        raise InvalidInput(f"cannot read settings file {file}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInput(f"settings file {file} is not TOML: {error}") from error
    if not isinstance(table, dict):
        raise InvalidInput(f"settings file {file}: [{TABLE}] must be a table")
    return table
