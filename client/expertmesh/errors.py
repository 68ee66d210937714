"""What a call to a mesh can raise.

ExpertmeshError
├── InvalidRequest        INVALID_ARGUMENT, OUT_OF_RANGE    change the request
├── NotFound              NOT_FOUND                         no such model or resource
├── Unauthenticated       UNAUTHENTICATED                   no token, or a wrong one
├── PermissionDenied      PERMISSION_DENIED                 the token may not do this
├── FailedPrecondition    FAILED_PRECONDITION               the state of the mesh does not allow it
├── Overloaded            RESOURCE_EXHAUSTED                try again after `retry_after_ms`
├── Unavailable           UNAVAILABLE                       not reachable, after the retries of the SDK
├── DeadlineExceeded      DEADLINE_EXCEEDED                 `deadline_s` is over
├── Cancelled             CANCELLED                         the stream was closed
├── Unsupported           UNIMPLEMENTED                     the server does not know this call
├── DataLoss              DATA_LOSS                         a blob or frame is corrupt
├── Internal              anything else                     the server's log has the details
└── StreamNotFinished     (raised locally)                  `result` was asked for before the end
"""

from __future__ import annotations

from collections.abc import Iterable

import grpc

RETRY_AFTER_KEY = "retry-after-ms"
DEFAULT_RETRY_AFTER_MS = 1000


class ExpertmeshError(Exception):
    """Base of everything the SDK raises. `status` is the gRPC status that it stands for."""

    status: grpc.StatusCode = grpc.StatusCode.UNKNOWN


class InvalidRequest(ExpertmeshError, ValueError):
    """An argument is wrong; the message names it and says what is allowed."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(ExpertmeshError):
    """The named model or resource does not exist."""

    status = grpc.StatusCode.NOT_FOUND


class Unauthenticated(ExpertmeshError):
    """The server wants a token, or another one."""

    status = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(ExpertmeshError):
    """The token is known but may not do this."""

    status = grpc.StatusCode.PERMISSION_DENIED


class FailedPrecondition(ExpertmeshError):
    """The state of the mesh does not allow the request."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class Overloaded(ExpertmeshError):
    """The mesh is full; `retry_after_ms` says when a retry makes sense."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, retry_after_ms: int = DEFAULT_RETRY_AFTER_MS) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class Unavailable(ExpertmeshError):
    """The mesh cannot be reached or cannot serve now."""

    status = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(ExpertmeshError, TimeoutError):
    """The deadline of the call is over."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(ExpertmeshError):
    """The call was ended from this side."""

    status = grpc.StatusCode.CANCELLED


class Unsupported(ExpertmeshError):
    """The server does not offer this call; it may be older than the SDK."""

    status = grpc.StatusCode.UNIMPLEMENTED


class DataLoss(ExpertmeshError):
    """Something stored or sent is corrupt."""

    status = grpc.StatusCode.DATA_LOSS


class Internal(ExpertmeshError):
    """The server failed in a way nobody foresaw."""

    status = grpc.StatusCode.INTERNAL


class StreamNotFinished(ExpertmeshError):
    """`result` exists only after the last token."""

    status = grpc.StatusCode.FAILED_PRECONDITION


_PLAIN: dict[grpc.StatusCode, type[ExpertmeshError]] = {
    kind.status: kind
    for kind in (
        InvalidRequest, NotFound, Unauthenticated, PermissionDenied, FailedPrecondition,
        Unavailable, DeadlineExceeded, Cancelled, Unsupported, DataLoss,
    )
}  # fmt: skip
_PLAIN[grpc.StatusCode.OUT_OF_RANGE] = InvalidRequest


def error_from_status(
    code: grpc.StatusCode, details: str, address: str, trailing: Iterable[tuple[str, str | bytes]] | None = None
) -> ExpertmeshError:
    """The SDK's error for a finished call's status; `address` goes into messages about reaching it."""
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Overloaded(details, retry_after_ms(trailing))
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(f"{address} is not available: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{address} did not answer within the deadline: {details}")
    return _PLAIN.get(code, Internal)(details or code.name)


def retry_after_ms(trailing: Iterable[tuple[str, str | bytes]] | None) -> int:
    """What the server's trailing metadata asks for, or the default."""
    for key, value in trailing or ():
        if key == RETRY_AFTER_KEY and isinstance(value, str) and value.isdigit():
            return int(value)
    return DEFAULT_RETRY_AFTER_MS
