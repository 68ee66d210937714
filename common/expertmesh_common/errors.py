"""The error tree of the services.

    MeshError                    INTERNAL
    ├── InvalidInput             INVALID_ARGUMENT      the caller must change the request
    ├── NotHere                  NOT_FOUND             the named thing does not exist here
    ├── Refused                  PERMISSION_DENIED     the caller may not do this
    ├── Unauthenticated          UNAUTHENTICATED       no or a wrong token or certificate
    ├── Exhausted                RESOURCE_EXHAUSTED    full; carries retry_after_ms
    ├── Unavailable              UNAVAILABLE           a retry may help
    ├── DeadlinePassed           DEADLINE_EXCEEDED
    ├── Precondition             FAILED_PRECONDITION   the state does not allow it: versions, terms, budgets
    └── CorruptData              DATA_LOSS             a blob or frame is not what its digest or header says

Each class carries the gRPC status it leaves the process with. Anything else leaves as a bare INTERNAL.
"""

from __future__ import annotations

import grpc


class MeshError(Exception):
    """Base of every error that the services raise on purpose."""

    status: grpc.StatusCode = grpc.StatusCode.INTERNAL


class InvalidInput(MeshError):
    """A field of a request, file or flag is wrong; the message names it and says what is allowed."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class NotHere(MeshError):
    """The named model, expert or blob is not here."""

    status = grpc.StatusCode.NOT_FOUND


class Refused(MeshError):
    """The caller is known but may not do this."""

    status = grpc.StatusCode.PERMISSION_DENIED


class Unauthenticated(MeshError):
    """No token, or one that is not valid here."""

    status = grpc.StatusCode.UNAUTHENTICATED


class Exhausted(MeshError):
    """A bounded resource is full."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, retry_after_ms: int = 1000) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class Unavailable(MeshError):
    """Something needed is not reachable now; a retry may help."""

    status = grpc.StatusCode.UNAVAILABLE


class DeadlinePassed(MeshError):
    """The caller's deadline is over."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED


class Precondition(MeshError):
    """The state of the system does not allow the request."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class CorruptData(MeshError):
    """Bytes are not what their digest, header or schema says."""

    status = grpc.StatusCode.DATA_LOSS
