"""What a gateway may be told, read once at the edge and passed down."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from expertmesh_common.channel.spinning import MAX_SPIN_US

__all__ = ["GatewaySettings"]


class GatewaySettings(BaseModel):
    """Limits and times of one gateway."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slots: int = Field(16, ge=1, le=1024, description="answers generated at the same time")
    context_tokens: int = Field(2048, ge=2, description="prompt and answer together, per request")
    prefill_chunk_tokens: int = Field(
        256, ge=1, description="prompt tokens per step; a long prompt delays others by that"
    )
    threads: int = Field(1, ge=1, description="of the trunk")
    spin_us: int = Field(0, ge=0, le=MAX_SPIN_US, description="polling for a worker's reply before sleeping")
    queue_limit: int = Field(128, ge=0, description="requests that may wait for a slot; one client alone gets half")
    reader_patience_s: float = Field(30.0, gt=0, description="an answer that nobody reads for so long is given up")
    default_deadline_s: float = Field(120.0, gt=0, description="for calls that bring no deadline")
    patience_s: float = Field(1.0, gt=0, description="longest wait for lost experts before looking around")
    report_interval_s: float = Field(1.0, gt=0, description="between load reports to the control loop")
