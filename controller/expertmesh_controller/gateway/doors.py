"""The gRPC doors of a gateway: every model that is served goes through the same two services."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import grpc.aio

from expertmesh_api.v1 import gating_pb2, gating_pb2_grpc, inference_pb2, inference_pb2_grpc
from expertmesh_controller.gateway.answering import Explaining
from expertmesh_controller.gateway.gating.gate import Gate
from expertmesh_controller.gateway.gating.service import GatingService
from expertmesh_controller.gateway.models import ServedModels
from expertmesh_controller.gateway.service import InferenceService

__all__ = ["add_services"]


def add_services(server: grpc.aio.Server, models: ServedModels, answering: Explaining | None = None) -> tuple[str, ...]:
    """Add Inference and Gating to a server that is not started yet; returns their full names.

    `answering` stands before the models, where requests are observed.
    """
    asked = answering or models
    inference_pb2_grpc.add_InferenceServicer_to_server(InferenceService(asked), server)
    gating = GatingService(_Gates(models), lambda name, layer: models.serving[name].holders(layer), asked)
    gating_pb2_grpc.add_GatingServicer_to_server(gating, server)
    files = (inference_pb2.DESCRIPTOR, gating_pb2.DESCRIPTOR)
    return tuple(service.full_name for file in files for service in file.services_by_name.values())


class _Gates(Mapping[str, Sequence[Gate]]):
    """The gates of the models that are served now."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models

    def __getitem__(self, name: str) -> Sequence[Gate]:
        return self._models.serving[name].gates

    def __iter__(self) -> Iterator[str]:
        return iter(self._models.serving)

    def __len__(self) -> int:
        return len(self._models.serving)
