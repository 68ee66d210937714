from expertmesh_api.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Capabilities(_message.Message):
    __slots__ = ("cores", "memory_bytes", "budget_bytes", "gemv_gb_per_s", "gemm_gflops", "speed_rows_per_s", "providers")
    CORES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    GEMV_GB_PER_S_FIELD_NUMBER: _ClassVar[int]
    GEMM_GFLOPS_FIELD_NUMBER: _ClassVar[int]
    SPEED_ROWS_PER_S_FIELD_NUMBER: _ClassVar[int]
    PROVIDERS_FIELD_NUMBER: _ClassVar[int]
    cores: int
    memory_bytes: int
    budget_bytes: int
    gemv_gb_per_s: float
    gemm_gflops: float
    speed_rows_per_s: float
    providers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, cores: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., budget_bytes: _Optional[int] = ..., gemv_gb_per_s: _Optional[float] = ..., gemm_gflops: _Optional[float] = ..., speed_rows_per_s: _Optional[float] = ..., providers: _Optional[_Iterable[str]] = ...) -> None: ...

class ResidentExpert(_message.Message):
    __slots__ = ("expert", "precision", "digest", "resident_bytes", "fast_digest")
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    FAST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    expert: _common_pb2.ExpertRef
    precision: str
    digest: str
    resident_bytes: int
    fast_digest: str
    def __init__(self, expert: _Optional[_Union[_common_pb2.ExpertRef, _Mapping]] = ..., precision: _Optional[str] = ..., digest: _Optional[str] = ..., resident_bytes: _Optional[int] = ..., fast_digest: _Optional[str] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("worker_id", "generation", "version", "host_id", "capabilities", "endpoints", "resident")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    generation: str
    version: str
    host_id: str
    capabilities: Capabilities
    endpoints: _containers.RepeatedCompositeFieldContainer[_common_pb2.Endpoint]
    resident: _containers.RepeatedCompositeFieldContainer[ResidentExpert]
    def __init__(self, worker_id: _Optional[str] = ..., generation: _Optional[str] = ..., version: _Optional[str] = ..., host_id: _Optional[str] = ..., capabilities: _Optional[_Union[Capabilities, _Mapping]] = ..., endpoints: _Optional[_Iterable[_Union[_common_pb2.Endpoint, _Mapping]]] = ..., resident: _Optional[_Iterable[_Union[ResidentExpert, _Mapping]]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("n", "resident_bytes", "rows", "frames", "queued_frames")
    N_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FRAMES_FIELD_NUMBER: _ClassVar[int]
    n: int
    resident_bytes: int
    rows: int
    frames: int
    queued_frames: int
    def __init__(self, n: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., rows: _Optional[int] = ..., frames: _Optional[int] = ..., queued_frames: _Optional[int] = ...) -> None: ...

class OrderResult(_message.Message):
    __slots__ = ("order_id", "ok", "error", "resident_bytes")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    order_id: int
    ok: bool
    error: str
    resident_bytes: int
    def __init__(self, order_id: _Optional[int] = ..., ok: bool = ..., error: _Optional[str] = ..., resident_bytes: _Optional[int] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class WorkerMessage(_message.Message):
    __slots__ = ("hello", "heartbeat", "result", "leave")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    result: OrderResult
    leave: Leave
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., result: _Optional[_Union[OrderResult, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ...) -> None: ...

class ExpertSpec(_message.Message):
    __slots__ = ("expert", "precision", "digest", "blob_bytes", "resident_bytes", "hidden", "width", "activation", "numerics")
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BLOB_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    expert: _common_pb2.ExpertRef
    precision: str
    digest: str
    blob_bytes: int
    resident_bytes: int
    hidden: int
    width: int
    activation: str
    numerics: str
    def __init__(self, expert: _Optional[_Union[_common_pb2.ExpertRef, _Mapping]] = ..., precision: _Optional[str] = ..., digest: _Optional[str] = ..., blob_bytes: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., hidden: _Optional[int] = ..., width: _Optional[int] = ..., activation: _Optional[str] = ..., numerics: _Optional[str] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("spec", "sources")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    spec: ExpertSpec
    sources: _containers.RepeatedCompositeFieldContainer[_common_pb2.Endpoint]
    def __init__(self, spec: _Optional[_Union[ExpertSpec, _Mapping]] = ..., sources: _Optional[_Iterable[_Union[_common_pb2.Endpoint, _Mapping]]] = ...) -> None: ...

class Unload(_message.Message):
    __slots__ = ("expert", "precision")
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    expert: _common_pb2.ExpertRef
    precision: str
    def __init__(self, expert: _Optional[_Union[_common_pb2.ExpertRef, _Mapping]] = ..., precision: _Optional[str] = ...) -> None: ...

class Order(_message.Message):
    __slots__ = ("order_id", "epoch", "load", "unload")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    UNLOAD_FIELD_NUMBER: _ClassVar[int]
    order_id: int
    epoch: _common_pb2.Epoch
    load: Load
    unload: Unload
    def __init__(self, order_id: _Optional[int] = ..., epoch: _Optional[_Union[_common_pb2.Epoch, _Mapping]] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., unload: _Optional[_Union[Unload, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("lease_ms", "heartbeat_ms", "epoch", "version", "pulse_ms", "incarnation")
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PULSE_MS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    lease_ms: int
    heartbeat_ms: int
    epoch: _common_pb2.Epoch
    version: str
    pulse_ms: int
    incarnation: str
    def __init__(self, lease_ms: _Optional[int] = ..., heartbeat_ms: _Optional[int] = ..., epoch: _Optional[_Union[_common_pb2.Epoch, _Mapping]] = ..., version: _Optional[str] = ..., pulse_ms: _Optional[int] = ..., incarnation: _Optional[str] = ...) -> None: ...

class EpochChanged(_message.Message):
    __slots__ = ("epoch", "incarnation")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    epoch: _common_pb2.Epoch
    incarnation: str
    def __init__(self, epoch: _Optional[_Union[_common_pb2.Epoch, _Mapping]] = ..., incarnation: _Optional[str] = ...) -> None: ...

class ControlMessage(_message.Message):
    __slots__ = ("welcome", "order", "epoch")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    order: Order
    epoch: EpochChanged
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., order: _Optional[_Union[Order, _Mapping]] = ..., epoch: _Optional[_Union[EpochChanged, _Mapping]] = ...) -> None: ...
