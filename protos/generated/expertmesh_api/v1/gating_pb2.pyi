from expertmesh_api.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RouteRequest(_message.Message):
    __slots__ = ("model", "layer", "rows")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    model: str
    layer: int
    rows: _common_pb2.Tensor
    def __init__(self, model: _Optional[str] = ..., layer: _Optional[int] = ..., rows: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ...) -> None: ...

class RouteResponse(_message.Message):
    __slots__ = ("row_index", "expert_index", "weight")
    ROW_INDEX_FIELD_NUMBER: _ClassVar[int]
    EXPERT_INDEX_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    row_index: _common_pb2.Tensor
    expert_index: _common_pb2.Tensor
    weight: _common_pb2.Tensor
    def __init__(self, row_index: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ..., expert_index: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ..., weight: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("model", "layer", "rows")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    model: str
    layer: int
    rows: _common_pb2.Tensor
    def __init__(self, model: _Optional[str] = ..., layer: _Optional[int] = ..., rows: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ...) -> None: ...

class ExpertScore(_message.Message):
    __slots__ = ("index", "score", "picked", "weight", "margin", "workers")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PICKED_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    index: int
    score: float
    picked: bool
    weight: float
    margin: float
    workers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, index: _Optional[int] = ..., score: _Optional[float] = ..., picked: bool = ..., weight: _Optional[float] = ..., margin: _Optional[float] = ..., workers: _Optional[_Iterable[str]] = ...) -> None: ...

class RowExplanation(_message.Message):
    __slots__ = ("experts",)
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    experts: _containers.RepeatedCompositeFieldContainer[ExpertScore]
    def __init__(self, experts: _Optional[_Iterable[_Union[ExpertScore, _Mapping]]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("rule", "rows")
    RULE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rule: str
    rows: _containers.RepeatedCompositeFieldContainer[RowExplanation]
    def __init__(self, rule: _Optional[str] = ..., rows: _Optional[_Iterable[_Union[RowExplanation, _Mapping]]] = ...) -> None: ...

class ExplainTextRequest(_message.Message):
    __slots__ = ("model", "text", "as_question")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    AS_QUESTION_FIELD_NUMBER: _ClassVar[int]
    model: str
    text: str
    as_question: bool
    def __init__(self, model: _Optional[str] = ..., text: _Optional[str] = ..., as_question: bool = ...) -> None: ...

class LayerExplanation(_message.Message):
    __slots__ = ("layer", "rule", "score", "picked", "weight", "margin", "holders")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PICKED_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    layer: int
    rule: str
    score: _common_pb2.Tensor
    picked: _common_pb2.Tensor
    weight: _common_pb2.Tensor
    margin: _common_pb2.Tensor
    holders: _containers.RepeatedCompositeFieldContainer[Holders]
    def __init__(self, layer: _Optional[int] = ..., rule: _Optional[str] = ..., score: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ..., picked: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ..., weight: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ..., margin: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ..., holders: _Optional[_Iterable[_Union[Holders, _Mapping]]] = ...) -> None: ...

class Holders(_message.Message):
    __slots__ = ("worker_ids",)
    WORKER_IDS_FIELD_NUMBER: _ClassVar[int]
    worker_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, worker_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ExplainTextResponse(_message.Message):
    __slots__ = ("model", "token_ids", "pieces", "layers")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    model: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    pieces: _containers.RepeatedScalarFieldContainer[str]
    layers: _containers.RepeatedCompositeFieldContainer[LayerExplanation]
    def __init__(self, model: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., pieces: _Optional[_Iterable[str]] = ..., layers: _Optional[_Iterable[_Union[LayerExplanation, _Mapping]]] = ...) -> None: ...
