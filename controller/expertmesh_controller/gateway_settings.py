"""Settings of a gateway process, read once when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from expertmesh_common.channel.spinning import MAX_SPIN_US
from expertmesh_common.errors import InvalidInput
from expertmesh_controller.gateway.dispatch.links.opening import Transport
from expertmesh_controller.gateway.settings import GatewaySettings


class GatewayProcessSettings(BaseModel):
    """Everything that a gateway of its own is told from outside."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    join: Annotated[str, Field(min_length=1)]
    """The control loop: `host:port` or `unix:path`."""
    gateway_id: Annotated[str, Field(min_length=1)]
    """Its name in reports."""
    cache: Path
    """Folder of fetched bundles; several gateways may share it."""
    models: tuple[Path, ...] = ()
    """Folders of bundles that need not be fetched."""
    listen: str = "127.0.0.1:7071"
    """`host:port` or `unix:path`; loopback by default, because a wider one needs a token."""
    http_listen: str | None = None
    """Where the OpenAI door is: `host:port`, `off`, or None for ten ports above `listen`."""
    token: Annotated[str | None, Field(min_length=1)] = None
    """What the control loop demands; callers are let in by the tokens that it tells."""
    tls: Path | None = None
    """Folder with ca.pem, cert.pem and key.pem; None is plain text."""
    slots: Annotated[int, Field(ge=1, le=1024)] = 16
    """Answers in progress at once, per model."""
    context_tokens: Annotated[int, Field(ge=16)] = 2048
    """Prompt and answer together; a model's own limit if that is lower."""
    prefill_chunk_tokens: Annotated[int, Field(ge=1)] = 256
    """Prompt tokens per step; smaller steps disturb running answers less."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Of each trunk. More than the free cores makes every token slower."""
    transport: Transport = "auto"
    """Of the expert channel."""
    spin_us: Annotated[int, Field(ge=0, le=MAX_SPIN_US)] = 0
    """How long workers' sockets are polled for a reply before sleeping; only with a core for every process."""
    metrics_listen: str = "auto"
    """Where metrics and probes are: `host:port`, `auto` (loopback, any free port) or `off`."""
    otlp: str | None = None
    """Where traces go; None takes what OpenTelemetry's own variables say, by default nowhere."""
    drain_s: Annotated[float, Field(ge=0)] = 5.0
    """How long running answers may go on after a signal to end, or after their model was taken away."""

    @property
    def gateway(self) -> GatewaySettings:
        """What each model's gateway is told."""
        return GatewaySettings(
            slots=self.slots,
            context_tokens=self.context_tokens,
            prefill_chunk_tokens=self.prefill_chunk_tokens,
            threads=self.threads,
            spin_us=self.spin_us,
        )


def gateway_settings(flags: Mapping[str, Any]) -> GatewayProcessSettings:
    """The flags that were given, checked; None was not given.

    Raises:
        InvalidInput: a value is missing or out of range; the message names it, and never a token.

    """
    try:
        return GatewayProcessSettings.model_validate({n: value for n, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        shown = "" if name == "token" or first["type"] == "missing" else f" (got {first['input']!r})"
        raise InvalidInput(f"setting {name!r}: {first['msg']}{shown}") from error
