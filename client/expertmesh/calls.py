"""The calls of a mesh with their types: one list for both clients, bound to a channel when they are made.

The generated stubs are typed for asyncio only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from expertmesh_api.v1 import access_pb2 as access
from expertmesh_api.v1 import gating_pb2 as gating
from expertmesh_api.v1 import inference_pb2 as inference
from expertmesh_api.v1 import jobs_pb2 as jobs
from expertmesh_api.v1 import operations_pb2 as operations

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class Cancellable(Protocol):
    """A running call."""

    def cancel(self) -> object: ...


@dataclass(frozen=True, slots=True)
class Call(Generic[Request, Response]):
    """A call with one answer. A `repeatable` one may be asked again although it may have been carried out."""

    path: str
    request: type[Request]
    response: type[Response]
    repeatable: bool = True

    def bind(self, channel: grpc.Channel) -> grpc.UnaryUnaryMultiCallable[Request, Response]:
        return channel.unary_unary(self.path, self.request.SerializeToString, self.response.FromString)

    def bind_async(self, channel: grpc.aio.Channel) -> grpc.aio.UnaryUnaryMultiCallable[Request, Response]:
        return channel.unary_unary(self.path, self.request.SerializeToString, self.response.FromString)


def _call(
    service: str, name: str, request: type[Request], response: type[Response], *, repeatable: bool = True
) -> Call[Request, Response]:
    return Call(f"/expertmesh_api.v1.{service}/{name}", request, response, repeatable)


TOKENIZE = _call("Inference", "Tokenize", inference.TokenizeRequest, inference.TokenizeResponse)
SCORE = _call("Inference", "Score", inference.ScoreRequest, inference.ScoreResponse)
LIST_MODELS = _call("Inference", "ListModels", inference.ListModelsRequest, inference.ListModelsResponse)

EXPLAIN = _call("Gating", "Explain", gating.ExplainRequest, gating.ExplainResponse)
EXPLAIN_TEXT = _call("Gating", "ExplainText", gating.ExplainTextRequest, gating.ExplainTextResponse)

LIST_NODES = _call("Operations", "ListNodes", operations.ListNodesRequest, operations.ListNodesResponse)
LIST_EXPERTS = _call("Operations", "ListExperts", operations.ListExpertsRequest, operations.ListExpertsResponse)
WAIT_READY = _call("Operations", "WaitReady", operations.WaitReadyRequest, operations.WaitReadyResponse)
LIST_SERVED = _call("Operations", "ListServed", operations.ListServedRequest, operations.ListServedResponse)
# Serving what is served already changes nothing.
SERVE_MODEL = _call("Operations", "ServeModel", operations.ServeModelRequest, operations.ServeModelResponse)
UNSERVE_MODEL = _call(
    "Operations", "UnserveModel", operations.UnserveModelRequest, operations.UnserveModelResponse, repeatable=False
)

# Asked twice it would be refused, because the first one is there.
START_JOB = _call("Jobs", "Start", jobs.StartJobRequest, jobs.StartJobResponse, repeatable=False)
LIST_JOBS = _call("Jobs", "List", jobs.ListJobsRequest, jobs.ListJobsResponse)
GET_JOB = _call("Jobs", "Get", jobs.GetJobRequest, jobs.GetJobResponse)
CANCEL_JOB = _call("Jobs", "Cancel", jobs.CancelJobRequest, jobs.CancelJobResponse)

CREATE_TOKEN = _call("Access", "CreateToken", access.CreateTokenRequest, access.CreateTokenResponse, repeatable=False)
LIST_TOKENS = _call("Access", "ListTokens", access.ListTokensRequest, access.ListTokensResponse)
REVOKE_TOKEN = _call("Access", "RevokeToken", access.RevokeTokenRequest, access.RevokeTokenResponse)
LIST_AUDIT = _call("Access", "ListAudit", access.ListAuditRequest, access.ListAuditResponse)

_WATCH_JOB = "/expertmesh_api.v1.Jobs/Watch"
_GENERATE = "/expertmesh_api.v1.Inference/Generate"
_Serialise = Callable[[inference.GenerateRequest], bytes]


def bind_generate(
    channel: grpc.Channel,
) -> grpc.UnaryStreamMultiCallable[inference.GenerateRequest, inference.GenerateResponse]:
    """Generate, its answer as a stream."""
    request: _Serialise = inference.GenerateRequest.SerializeToString
    return channel.unary_stream(_GENERATE, request, inference.GenerateResponse.FromString)


def bind_generate_async(
    channel: grpc.aio.Channel,
) -> grpc.aio.UnaryStreamMultiCallable[inference.GenerateRequest, inference.GenerateResponse]:
    """The same for asyncio."""
    request: _Serialise = inference.GenerateRequest.SerializeToString
    return channel.unary_stream(_GENERATE, request, inference.GenerateResponse.FromString)


def bind_watch_job(
    channel: grpc.Channel,
) -> grpc.UnaryStreamMultiCallable[jobs.WatchJobRequest, jobs.WatchJobResponse]:
    """Jobs/Watch, its answers as a stream."""
    request: Callable[[jobs.WatchJobRequest], bytes] = jobs.WatchJobRequest.SerializeToString
    return channel.unary_stream(_WATCH_JOB, request, jobs.WatchJobResponse.FromString)


def bind_watch_job_async(
    channel: grpc.aio.Channel,
) -> grpc.aio.UnaryStreamMultiCallable[jobs.WatchJobRequest, jobs.WatchJobResponse]:
    """The same for asyncio."""
    request: Callable[[jobs.WatchJobRequest], bytes] = jobs.WatchJobRequest.SerializeToString
    return channel.unary_stream(_WATCH_JOB, request, jobs.WatchJobResponse.FromString)
