from expertmesh_api.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListNodesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Node(_message.Message):
    __slots__ = ("worker_id", "generation", "state", "cores", "memory_bytes", "budget_bytes", "resident_bytes", "experts", "rows", "speed_rows_per_s", "gemv_gb_per_s", "gemm_gflops", "providers", "endpoints", "heartbeat_age_ms")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SPEED_ROWS_PER_S_FIELD_NUMBER: _ClassVar[int]
    GEMV_GB_PER_S_FIELD_NUMBER: _ClassVar[int]
    GEMM_GFLOPS_FIELD_NUMBER: _ClassVar[int]
    PROVIDERS_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    generation: str
    state: str
    cores: int
    memory_bytes: int
    budget_bytes: int
    resident_bytes: int
    experts: int
    rows: int
    speed_rows_per_s: float
    gemv_gb_per_s: float
    gemm_gflops: float
    providers: _containers.RepeatedScalarFieldContainer[str]
    endpoints: _containers.RepeatedCompositeFieldContainer[_common_pb2.Endpoint]
    heartbeat_age_ms: int
    def __init__(self, worker_id: _Optional[str] = ..., generation: _Optional[str] = ..., state: _Optional[str] = ..., cores: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., budget_bytes: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., experts: _Optional[int] = ..., rows: _Optional[int] = ..., speed_rows_per_s: _Optional[float] = ..., gemv_gb_per_s: _Optional[float] = ..., gemm_gflops: _Optional[float] = ..., providers: _Optional[_Iterable[str]] = ..., endpoints: _Optional[_Iterable[_Union[_common_pb2.Endpoint, _Mapping]]] = ..., heartbeat_age_ms: _Optional[int] = ...) -> None: ...

class ListNodesResponse(_message.Message):
    __slots__ = ("epoch", "nodes")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    epoch: _common_pb2.Epoch
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    def __init__(self, epoch: _Optional[_Union[_common_pb2.Epoch, _Mapping]] = ..., nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ...) -> None: ...

class ListExpertsRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class ExpertPlacement(_message.Message):
    __slots__ = ("expert", "precision", "resident_bytes", "worker_ids")
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    WORKER_IDS_FIELD_NUMBER: _ClassVar[int]
    expert: _common_pb2.ExpertRef
    precision: str
    resident_bytes: int
    worker_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, expert: _Optional[_Union[_common_pb2.ExpertRef, _Mapping]] = ..., precision: _Optional[str] = ..., resident_bytes: _Optional[int] = ..., worker_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ListExpertsResponse(_message.Message):
    __slots__ = ("epoch", "experts")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    epoch: _common_pb2.Epoch
    experts: _containers.RepeatedCompositeFieldContainer[ExpertPlacement]
    def __init__(self, epoch: _Optional[_Union[_common_pb2.Epoch, _Mapping]] = ..., experts: _Optional[_Iterable[_Union[ExpertPlacement, _Mapping]]] = ...) -> None: ...

class WaitReadyRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class WaitReadyResponse(_message.Message):
    __slots__ = ("epoch", "workers", "experts", "instances", "missing_bytes")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    MISSING_BYTES_FIELD_NUMBER: _ClassVar[int]
    epoch: _common_pb2.Epoch
    workers: int
    experts: int
    instances: int
    missing_bytes: int
    def __init__(self, epoch: _Optional[_Union[_common_pb2.Epoch, _Mapping]] = ..., workers: _Optional[int] = ..., experts: _Optional[int] = ..., instances: _Optional[int] = ..., missing_bytes: _Optional[int] = ...) -> None: ...
