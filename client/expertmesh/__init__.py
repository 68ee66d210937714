"""The client of an expertmesh: stream tokens from mixture-of-experts models served across many machines.

from expertmesh import Client

with Client("localhost:7070") as client:
stream = client.chat([{"role": "user", "content": "What is the capital of France?"}], max_tokens=64)
for text in stream.texts():
print(text, end="", flush=True)
print(stream.result.completion_tokens, "tokens")
"""

from expertmesh.aio_client import AsyncClient
from expertmesh.channel import Tls
from expertmesh.client import Client
from expertmesh.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    ExpertmeshError,
    FailedPrecondition,
    Internal,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    StreamNotFinished,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from expertmesh.inspecting import ExpertChoice, Explanation, LayerExplanation, MeshFacts
from expertmesh.jobs import ImportedModel, Job
from expertmesh.operating import ModelStatus, SlaTarget, TargetState
from expertmesh.options import GenerateOptions
from expertmesh.resuming import ResumePolicy
from expertmesh.streams import AsyncTokenStream, TokenStream
from expertmesh.types import (
    Completion,
    ExpertPlacement,
    Node,
    Readiness,
    Score,
    ScoredToken,
    ServedModel,
    Token,
    Tokenization,
    TopLogprob,
)
from expertmesh.version import __version__

__all__ = [
    "AsyncClient",
    "AsyncTokenStream",
    "Cancelled",
    "Client",
    "Completion",
    "DataLoss",
    "DeadlineExceeded",
    "ExpertChoice",
    "ExpertPlacement",
    "ExpertmeshError",
    "Explanation",
    "FailedPrecondition",
    "GenerateOptions",
    "ImportedModel",
    "Internal",
    "InvalidRequest",
    "Job",
    "LayerExplanation",
    "MeshFacts",
    "ModelStatus",
    "Node",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "Readiness",
    "ResumePolicy",
    "Score",
    "ScoredToken",
    "ServedModel",
    "SlaTarget",
    "StreamNotFinished",
    "TargetState",
    "Tls",
    "Token",
    "TokenStream",
    "Tokenization",
    "TopLogprob",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "__version__",
]
