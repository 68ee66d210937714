from expertmesh_api.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchRequest(_message.Message):
    __slots__ = ("gateway_id",)
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    gateway_id: str
    def __init__(self, gateway_id: _Optional[str] = ...) -> None: ...

class RouteWorker(_message.Message):
    __slots__ = ("worker_id", "generation", "endpoints", "host_id", "speed_rows_per_s")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    SPEED_ROWS_PER_S_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    generation: str
    endpoints: _containers.RepeatedCompositeFieldContainer[_common_pb2.Endpoint]
    host_id: str
    speed_rows_per_s: float
    def __init__(self, worker_id: _Optional[str] = ..., generation: _Optional[str] = ..., endpoints: _Optional[_Iterable[_Union[_common_pb2.Endpoint, _Mapping]]] = ..., host_id: _Optional[str] = ..., speed_rows_per_s: _Optional[float] = ...) -> None: ...

class Instance(_message.Message):
    __slots__ = ("model", "layer", "index", "worker", "precision", "numerics")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    model: str
    layer: int
    index: int
    worker: int
    precision: str
    numerics: str
    def __init__(self, model: _Optional[str] = ..., layer: _Optional[int] = ..., index: _Optional[int] = ..., worker: _Optional[int] = ..., precision: _Optional[str] = ..., numerics: _Optional[str] = ...) -> None: ...

class Lack(_message.Message):
    __slots__ = ("model", "missing_bytes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MISSING_BYTES_FIELD_NUMBER: _ClassVar[int]
    model: str
    missing_bytes: int
    def __init__(self, model: _Optional[str] = ..., missing_bytes: _Optional[int] = ...) -> None: ...

class RouteTable(_message.Message):
    __slots__ = ("epoch", "workers", "instances", "incarnation", "lacks")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LACKS_FIELD_NUMBER: _ClassVar[int]
    epoch: _common_pb2.Epoch
    workers: _containers.RepeatedCompositeFieldContainer[RouteWorker]
    instances: _containers.RepeatedCompositeFieldContainer[Instance]
    incarnation: str
    lacks: _containers.RepeatedCompositeFieldContainer[Lack]
    def __init__(self, epoch: _Optional[_Union[_common_pb2.Epoch, _Mapping]] = ..., workers: _Optional[_Iterable[_Union[RouteWorker, _Mapping]]] = ..., instances: _Optional[_Iterable[_Union[Instance, _Mapping]]] = ..., incarnation: _Optional[str] = ..., lacks: _Optional[_Iterable[_Union[Lack, _Mapping]]] = ...) -> None: ...

class ExpertRows(_message.Message):
    __slots__ = ("expert", "rows")
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    expert: _common_pb2.ExpertRef
    rows: int
    def __init__(self, expert: _Optional[_Union[_common_pb2.ExpertRef, _Mapping]] = ..., rows: _Optional[int] = ...) -> None: ...

class GatewayReport(_message.Message):
    __slots__ = ("gateway_id", "arrivals", "token_ms_histogram", "rows", "suspect_worker_ids")
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    ARRIVALS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_MS_HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SUSPECT_WORKER_IDS_FIELD_NUMBER: _ClassVar[int]
    gateway_id: str
    arrivals: int
    token_ms_histogram: _containers.RepeatedScalarFieldContainer[int]
    rows: _containers.RepeatedCompositeFieldContainer[ExpertRows]
    suspect_worker_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, gateway_id: _Optional[str] = ..., arrivals: _Optional[int] = ..., token_ms_histogram: _Optional[_Iterable[int]] = ..., rows: _Optional[_Iterable[_Union[ExpertRows, _Mapping]]] = ..., suspect_worker_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ReportAck(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServedBundle(_message.Message):
    __slots__ = ("model", "precision", "manifest_digest", "manifest_bytes", "numerics", "local_layers")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_LAYERS_FIELD_NUMBER: _ClassVar[int]
    model: str
    precision: str
    manifest_digest: str
    manifest_bytes: int
    numerics: str
    local_layers: str
    def __init__(self, model: _Optional[str] = ..., precision: _Optional[str] = ..., manifest_digest: _Optional[str] = ..., manifest_bytes: _Optional[int] = ..., numerics: _Optional[str] = ..., local_layers: _Optional[str] = ...) -> None: ...

class LeavingModel(_message.Message):
    __slots__ = ("model", "drain_ms")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DRAIN_MS_FIELD_NUMBER: _ClassVar[int]
    model: str
    drain_ms: int
    def __init__(self, model: _Optional[str] = ..., drain_ms: _Optional[int] = ...) -> None: ...

class BundleList(_message.Message):
    __slots__ = ("bundles", "leaving")
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    bundles: _containers.RepeatedCompositeFieldContainer[ServedBundle]
    leaving: _containers.RepeatedCompositeFieldContainer[LeavingModel]
    def __init__(self, bundles: _Optional[_Iterable[_Union[ServedBundle, _Mapping]]] = ..., leaving: _Optional[_Iterable[_Union[LeavingModel, _Mapping]]] = ...) -> None: ...
