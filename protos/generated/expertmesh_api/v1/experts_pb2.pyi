from expertmesh_api.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OpenRequest(_message.Message):
    __slots__ = ("gateway_id", "host_id", "transports", "frame_versions")
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    FRAME_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    gateway_id: str
    host_id: str
    transports: _containers.RepeatedScalarFieldContainer[str]
    frame_versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, gateway_id: _Optional[str] = ..., host_id: _Optional[str] = ..., transports: _Optional[_Iterable[str]] = ..., frame_versions: _Optional[_Iterable[int]] = ...) -> None: ...

class OpenResponse(_message.Message):
    __slots__ = ("endpoint", "ticket", "frame_version", "max_frame_bytes", "worker_id", "generation")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    FRAME_VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    endpoint: _common_pb2.Endpoint
    ticket: bytes
    frame_version: int
    max_frame_bytes: int
    worker_id: str
    generation: str
    def __init__(self, endpoint: _Optional[_Union[_common_pb2.Endpoint, _Mapping]] = ..., ticket: _Optional[bytes] = ..., frame_version: _Optional[int] = ..., max_frame_bytes: _Optional[int] = ..., worker_id: _Optional[str] = ..., generation: _Optional[str] = ...) -> None: ...

class ExpertFrame(_message.Message):
    __slots__ = ("frame",)
    FRAME_FIELD_NUMBER: _ClassVar[int]
    frame: bytes
    def __init__(self, frame: _Optional[bytes] = ...) -> None: ...

class StatRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExpertStat(_message.Message):
    __slots__ = ("expert", "precision", "resident_bytes", "rows")
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    expert: _common_pb2.ExpertRef
    precision: str
    resident_bytes: int
    rows: int
    def __init__(self, expert: _Optional[_Union[_common_pb2.ExpertRef, _Mapping]] = ..., precision: _Optional[str] = ..., resident_bytes: _Optional[int] = ..., rows: _Optional[int] = ...) -> None: ...

class StatResponse(_message.Message):
    __slots__ = ("worker_id", "generation", "budget_bytes", "resident_bytes", "rows", "experts")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    generation: str
    budget_bytes: int
    resident_bytes: int
    rows: int
    experts: _containers.RepeatedCompositeFieldContainer[ExpertStat]
    def __init__(self, worker_id: _Optional[str] = ..., generation: _Optional[str] = ..., budget_bytes: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., rows: _Optional[int] = ..., experts: _Optional[_Iterable[_Union[ExpertStat, _Mapping]]] = ...) -> None: ...
