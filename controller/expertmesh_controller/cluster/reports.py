"""What a gateway tells the control loop once a second: its load, and whom it suspects."""

from __future__ import annotations

from dataclasses import dataclass

from expertmesh_api.v1 import common_pb2, routes_pb2
from expertmesh_common.errors import InvalidInput

__all__ = ["MOST_ROWS", "TOKEN_MS_BOUNDS", "ExpertRows", "GatewayReport"]

TOKEN_MS_BOUNDS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)
"""Upper bounds of `GatewayReport.token_ms_histogram`; one more bucket counts what is above the last."""

MOST_ROWS = 2**40
"""Of one expert in one report: a thousand times what a fast machine computes in a day."""


@dataclass(frozen=True, slots=True)
class ExpertRows:
    """Rows that were sent to an expert."""

    model: str
    layer: int
    index: int
    rows: int


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """What a gateway saw since its last report; histogram bounds are `TOKEN_MS_BOUNDS`."""

    gateway_id: str
    arrivals: int = 0
    token_ms_histogram: tuple[int, ...] = ()
    rows: tuple[ExpertRows, ...] = ()
    suspect_worker_ids: tuple[str, ...] = ()

    def to_proto(self) -> routes_pb2.GatewayReport:
        return routes_pb2.GatewayReport(
            gateway_id=self.gateway_id,
            arrivals=self.arrivals,
            token_ms_histogram=self.token_ms_histogram,
            rows=[
                routes_pb2.ExpertRows(
                    expert=common_pb2.ExpertRef(model=r.model, layer=r.layer, index=r.index), rows=r.rows
                )
                for r in self.rows
            ],
            suspect_worker_ids=self.suspect_worker_ids,
        )

    @staticmethod
    def from_proto(message: routes_pb2.GatewayReport) -> GatewayReport:
        """The report of a message.

        Raises:
            InvalidInput: a count is beyond anything that a gateway can have seen.

        """
        for row in message.rows:
            if row.rows > MOST_ROWS:
                raise InvalidInput(
                    f"rows: {row.rows} of expert {row.expert.layer}/{row.expert.index} in one report of gateway"
                    f" {message.gateway_id[:40]!r}; at most {MOST_ROWS} are believed"
                )
        return GatewayReport(
            message.gateway_id,
            message.arrivals,
            tuple(message.token_ms_histogram),
            tuple(ExpertRows(r.expert.model, r.expert.layer, r.expert.index, r.rows) for r in message.rows),
            tuple(message.suspect_worker_ids),
        )
