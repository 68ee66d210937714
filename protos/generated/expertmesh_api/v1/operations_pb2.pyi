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
    __slots__ = ("worker_id", "generation", "state", "cores", "memory_bytes", "budget_bytes", "resident_bytes", "experts", "rows", "speed_rows_per_s", "gemv_gb_per_s", "gemm_gflops", "providers", "endpoints", "heartbeat_age_ms", "version")
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
    VERSION_FIELD_NUMBER: _ClassVar[int]
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
    version: str
    def __init__(self, worker_id: _Optional[str] = ..., generation: _Optional[str] = ..., state: _Optional[str] = ..., cores: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., budget_bytes: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., experts: _Optional[int] = ..., rows: _Optional[int] = ..., speed_rows_per_s: _Optional[float] = ..., gemv_gb_per_s: _Optional[float] = ..., gemm_gflops: _Optional[float] = ..., providers: _Optional[_Iterable[str]] = ..., endpoints: _Optional[_Iterable[_Union[_common_pb2.Endpoint, _Mapping]]] = ..., heartbeat_age_ms: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class ListNodesResponse(_message.Message):
    __slots__ = ("epoch", "nodes", "server_version", "server_time_ms")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    epoch: _common_pb2.Epoch
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    server_version: str
    server_time_ms: int
    def __init__(self, epoch: _Optional[_Union[_common_pb2.Epoch, _Mapping]] = ..., nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., server_version: _Optional[str] = ..., server_time_ms: _Optional[int] = ...) -> None: ...

class ListExpertsRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class ExpertPlacement(_message.Message):
    __slots__ = ("expert", "precision", "resident_bytes", "worker_ids", "rows")
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    WORKER_IDS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    expert: _common_pb2.ExpertRef
    precision: str
    resident_bytes: int
    worker_ids: _containers.RepeatedScalarFieldContainer[str]
    rows: int
    def __init__(self, expert: _Optional[_Union[_common_pb2.ExpertRef, _Mapping]] = ..., precision: _Optional[str] = ..., resident_bytes: _Optional[int] = ..., worker_ids: _Optional[_Iterable[str]] = ..., rows: _Optional[int] = ...) -> None: ...

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

class SlaTarget(_message.Message):
    __slots__ = ("ttft_p95_ms", "token_p95_ms", "window_s", "min_instances", "max_instances", "cost_weight")
    TTFT_P95_MS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_P95_MS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_S_FIELD_NUMBER: _ClassVar[int]
    MIN_INSTANCES_FIELD_NUMBER: _ClassVar[int]
    MAX_INSTANCES_FIELD_NUMBER: _ClassVar[int]
    COST_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    ttft_p95_ms: float
    token_p95_ms: float
    window_s: float
    min_instances: int
    max_instances: int
    cost_weight: float
    def __init__(self, ttft_p95_ms: _Optional[float] = ..., token_p95_ms: _Optional[float] = ..., window_s: _Optional[float] = ..., min_instances: _Optional[int] = ..., max_instances: _Optional[int] = ..., cost_weight: _Optional[float] = ...) -> None: ...

class ListServedRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("name", "path", "bundle_digest", "precision", "sla", "budget_share", "experts", "instances", "resident_bytes", "missing_bytes", "state", "requests", "ttft_p95_ms", "token_p95_ms", "error", "slots", "numerics", "local_layers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    SLA_FIELD_NUMBER: _ClassVar[int]
    BUDGET_SHARE_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MISSING_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TTFT_P95_MS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_P95_MS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_LAYERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    bundle_digest: str
    precision: str
    sla: SlaTarget
    budget_share: float
    experts: int
    instances: int
    resident_bytes: int
    missing_bytes: int
    state: str
    requests: int
    ttft_p95_ms: float
    token_p95_ms: float
    error: str
    slots: int
    numerics: str
    local_layers: str
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., bundle_digest: _Optional[str] = ..., precision: _Optional[str] = ..., sla: _Optional[_Union[SlaTarget, _Mapping]] = ..., budget_share: _Optional[float] = ..., experts: _Optional[int] = ..., instances: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., missing_bytes: _Optional[int] = ..., state: _Optional[str] = ..., requests: _Optional[int] = ..., ttft_p95_ms: _Optional[float] = ..., token_p95_ms: _Optional[float] = ..., error: _Optional[str] = ..., slots: _Optional[int] = ..., numerics: _Optional[str] = ..., local_layers: _Optional[str] = ...) -> None: ...

class ListServedResponse(_message.Message):
    __slots__ = ("epoch", "models")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    epoch: _common_pb2.Epoch
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    def __init__(self, epoch: _Optional[_Union[_common_pb2.Epoch, _Mapping]] = ..., models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ...) -> None: ...

class ServeModelRequest(_message.Message):
    __slots__ = ("path", "name", "precision", "sla", "budget_share", "slots", "numerics", "local_layers")
    PATH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    SLA_FIELD_NUMBER: _ClassVar[int]
    BUDGET_SHARE_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_LAYERS_FIELD_NUMBER: _ClassVar[int]
    path: str
    name: str
    precision: str
    sla: SlaTarget
    budget_share: float
    slots: int
    numerics: str
    local_layers: str
    def __init__(self, path: _Optional[str] = ..., name: _Optional[str] = ..., precision: _Optional[str] = ..., sla: _Optional[_Union[SlaTarget, _Mapping]] = ..., budget_share: _Optional[float] = ..., slots: _Optional[int] = ..., numerics: _Optional[str] = ..., local_layers: _Optional[str] = ...) -> None: ...

class ServeModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelStatus
    def __init__(self, model: _Optional[_Union[ModelStatus, _Mapping]] = ...) -> None: ...

class UnserveModelRequest(_message.Message):
    __slots__ = ("name", "drain_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DRAIN_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    drain_ms: int
    def __init__(self, name: _Optional[str] = ..., drain_ms: _Optional[int] = ...) -> None: ...

class UnserveModelResponse(_message.Message):
    __slots__ = ("cut_requests",)
    CUT_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    cut_requests: int
    def __init__(self, cut_requests: _Optional[int] = ...) -> None: ...
