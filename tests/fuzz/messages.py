"""Strategies for every public message, derived from its descriptor, and for bytes that almost are one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from models import tiny_bundle as tiny

_DEEPEST = 4
_INTEGERS = {
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
}
_USUAL: dict[str, tuple[Any, ...]] = {
    "model": ("", "tiny"),
    "layer": (0, 1, 2),
    "ids": (1, 5, 299),
    "token_ids": (1, 5, 299),
    "max_tokens": (0, 1, 4),
    "resume_token_ids": (1, 5),
    "role": ("user", "system"),
    "temperature": (0.0, 0.8),
    "top_k": (0, 5),
    "top_p": (1.0, 0.5),
    "min_p": (0.0, 0.1),
    "repetition_penalty": (1.0, 1.2),
    "top_logprobs": (0, 2),
    "digest": ("0" * 64,),
    "frame_versions": (1,),
    "transports": ("unix", "tcp", "grpc"),
    "precision": ("fp32", "int4"),
    "offset": (0,),
    "worker_id": ("ghost",),
    "generation": ("g1", "g2"),
    "version": ("0.1.0",),
    "path": ("/nonexistent", "/", "relative/folder"),
    "ttl_ms": (1, 60_000),
    "name": ("a-name",),
    "scopes": ("infer", "operate"),
}
"""What fields mostly hold, so that more than the first check is reached."""

_TEXTS = ("", "tiny", "w1", "worker-1", "g1", "fp32", "int4", "swiglu", "user", "\0", "../..")


@functools.cache
def messages(descriptor: Descriptor, depth: int = 0) -> st.SearchStrategy[Message]:
    """Messages of one type: any of its fields set, to values at and beyond the edges of what is allowed."""
    if descriptor.full_name == "expertmesh_api.v1.Tensor":
        return _tensors()
    fields = {field.name: _values(field, depth) for field in descriptor.fields if not _too_deep(field, depth)}
    chosen = st.fixed_dictionaries({}, optional=fields)
    return chosen.map(functools.partial(_built, GetMessageClass(descriptor)))


def encoded(descriptor: Descriptor) -> st.SearchStrategy[bytes]:
    """Serialised messages: most of them sound, some cut, changed, with fields nobody knows, or no message at all."""
    sound = messages(descriptor).map(lambda message: message.SerializeToString())
    damaged = st.tuples(sound, st.integers(0, 10**6), st.integers(0, 255)).map(_damaged)
    unknown = st.tuples(sound, st.integers(200, 300), st.binary(max_size=20)).map(_with_unknown_field)
    return st.one_of(*(sound,) * 7, damaged, unknown, st.binary(max_size=60))


def _built(kind: Callable[..., Message], fields: dict[str, Any]) -> Message:
    return kind(**fields)


def _too_deep(field: FieldDescriptor, depth: int) -> bool:
    return field.message_type is not None and depth >= _DEEPEST


def _values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    single = _single(field, depth)
    if field.name in _USUAL and field.message_type is None:
        usual = st.sampled_from(_USUAL[field.name])
        single = st.one_of(usual, usual, usual, single)
    return st.lists(single, max_size=4) if field.is_repeated else single


def _single(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type, depth + 1)
    if field.type in _INTEGERS:
        low, high = _INTEGERS[field.type]
        return st.one_of(st.sampled_from((0, 1, 2, 3, 5, 300)), st.integers(low, high))
    if field.type in {FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE}:
        return st.one_of(st.sampled_from((0.0, 0.5, 1.0)), st.floats(width=32))
    return _others(field)


def _others(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_ENUM:
        return st.sampled_from([value.number for value in field.enum_type.values])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=64)
    if field.type == FieldDescriptor.TYPE_STRING:
        long = st.integers(20, 3000).map("a ".__mul__)
        return st.one_of(st.sampled_from(_TEXTS), st.text(max_size=20), long)
    raise NotImplementedError(f"no strategy for {field.full_name}: add one")


def _tensors() -> st.SearchStrategy[Message]:
    from expertmesh_api.v1 import common_pb2

    wild = st.builds(
        common_pb2.Tensor,
        name=st.sampled_from(("", "rows", "x")),
        dtype=st.sampled_from(("float32", "float16", "int32", "object", "", "<f4,<f4", "nonsense")),
        shape=st.lists(st.sampled_from((0, 1, 2, tiny.HIDDEN, 2**31, 2**32 - 1)), max_size=4),
        data=st.one_of(st.binary(max_size=64), st.just(bytes(4 * tiny.HIDDEN))),
    )
    row = st.sampled_from((0.0, 1.0, -1e30, float("nan"), float("inf")))
    sound = row.map(
        lambda value: common_pb2.Tensor(
            name="rows", dtype="float32", shape=[1, tiny.HIDDEN], data=np.full(tiny.HIDDEN, value, "<f4").tobytes()
        )
    )
    return st.one_of(sound, wild)


def _damaged(drawn: tuple[bytes, int, int]) -> bytes:
    data, place, value = drawn
    if not data:
        return bytes((value,))
    at = place % len(data)
    return data[:at] if value < 64 else data[:at] + bytes((value,)) + data[at + 1 :]


def _with_unknown_field(drawn: tuple[bytes, int, bytes]) -> bytes:
    data, number, value = drawn
    key = number << 3 | 2
    return data + bytes((key & 0x7F | 0x80, key >> 7)) + bytes((len(value),)) + value
