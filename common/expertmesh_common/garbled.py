"""Requests that cannot be read: told to the caller with the field named, instead of leaving as an unknown error."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from expertmesh_common.errors import InvalidInput

__all__ = ["Garbled", "lenient", "readable", "readable_stream"]

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class Garbled:
    """Stands for a request whose bytes are no such message."""

    def __init__(self, data: bytes, descriptor: Descriptor | None) -> None:
        self._data, self._descriptor = data, descriptor

    def SerializeToString(self, *, deterministic: bool = True) -> bytes:  # noqa: ARG002, N802 - as messages have it
        """The bytes that came."""
        return self._data

    def error(self) -> InvalidInput:
        """What is wrong with it, as far as that can be told."""
        if self._descriptor is None:
            return InvalidInput("the request cannot be read")
        field = not_utf8(self._data, self._descriptor)
        if field:
            return InvalidInput(f"{field} is not valid UTF-8: send text as UTF-8")
        return InvalidInput(f"the request is no {self._descriptor.name}: its {len(self._data)} bytes cannot be decoded")


def lenient(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """The same, but what cannot be read comes out as a `Garbled`; None (raw bytes) stays None."""
    if deserializer is None:
        return None
    descriptor = getattr(getattr(deserializer, "__self__", None), "DESCRIPTOR", None)

    def read(data: bytes) -> Any:  # noqa: ANN401 - any message
        try:
            return deserializer(data)
        except DecodeError:
            return Garbled(data, descriptor)

    return read


def readable(request: Any) -> Any:  # noqa: ANN401 - any message
    """The same request.

    Raises:
        InvalidInput: it could not be read.

    """
    if isinstance(request, Garbled):
        raise request.error()
    return request


async def readable_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The same requests, until one that could not be read. Raises as `readable`."""
    async for request in requests:
        yield readable(request)


def not_utf8(data: bytes, descriptor: Descriptor, path: str = "") -> str:
    """The first string field whose bytes are no UTF-8, such as `chat.messages.content`; "" if there is none."""
    for number, value in _length_delimited(data):
        field = descriptor.fields_by_number.get(number)
        if field is None:
            continue
        here = f"{path}{field.name}"
        if field.type == FieldDescriptor.TYPE_STRING and not _is_utf8(value):
            return here
        if field.message_type is not None and (found := not_utf8(value, field.message_type, f"{here}.")):
            return found
    return ""


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _length_delimited(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of the fields that have a length, up to where the bytes make no sense any more."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _LENGTH:
            size, at = _varint(data, at)
            yield key >> 3, data[at : at + size]
            at += size
        elif kind == _VARINT:
            _, at = _varint(data, at)
        elif kind in {_FIXED64, _FIXED32}:
            at += 8 if kind == _FIXED64 else 4
        else:
            return


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            break
    return value, at
