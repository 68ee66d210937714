"""The calls of a mesh with their types, for synchronous channels.

The generated stubs are typed for asyncio; these descriptors give both worlds one list of paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar, cast

import grpc

from expertmesh.channel import Metadata
from expertmesh_api.v1 import inference_pb2, inference_pb2_grpc, operations_pb2, operations_pb2_grpc

Request_contra = TypeVar("Request_contra", contravariant=True)
Response_co = TypeVar("Response_co", covariant=True)


class Unary(Protocol, Generic[Request_contra, Response_co]):
    """A call with one answer."""

    def __call__(self, request: Request_contra, *, timeout: float, metadata: Metadata) -> Response_co: ...


class Reply(Protocol):
    """A running server stream."""

    def __iter__(self) -> Iterator[inference_pb2.GenerateResponse]: ...

    def cancel(self) -> bool: ...


class Streaming(Protocol):
    """A call with a stream of answers."""

    def __call__(self, request: inference_pb2.GenerateRequest, *, timeout: float, metadata: Metadata) -> Reply: ...


class SyncCalls:
    """Every call the client makes, bound to one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        # At run time a stub takes either kind of channel; its type stub only knows asyncio.
        either = cast("Any", channel)
        inference: Any = inference_pb2_grpc.InferenceStub(either)
        operations: Any = operations_pb2_grpc.OperationsStub(either)
        self.generate: Streaming = inference.Generate
        self.tokenize: Unary[inference_pb2.TokenizeRequest, inference_pb2.TokenizeResponse] = inference.Tokenize
        self.list_models: Unary[inference_pb2.ListModelsRequest, inference_pb2.ListModelsResponse] = (
            inference.ListModels
        )
        self.list_nodes: Unary[operations_pb2.ListNodesRequest, operations_pb2.ListNodesResponse] = operations.ListNodes
        self.list_experts: Unary[operations_pb2.ListExpertsRequest, operations_pb2.ListExpertsResponse] = (
            operations.ListExperts
        )
        self.wait_ready: Unary[operations_pb2.WaitReadyRequest, operations_pb2.WaitReadyResponse] = operations.WaitReady
