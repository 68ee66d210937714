"""Frames as the `ExpertFrame` messages of gRPC, without a copy per layer of software.

`ExpertFrame{bytes frame = 1}` is one tag byte, the length as a varint, and the frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from expertmesh_common.channel.layout import Chunk, chunk_bytes
from expertmesh_common.errors import CorruptData

SERVICE: Final = "expertmesh_api.v1.Experts"
EXECUTE_METHOD: Final = f"/{SERVICE}/Execute"
_TAG: Final = 0x0A  # field 1, length-delimited


def wrap(chunks: Sequence[Chunk]) -> bytes:
    """The serialised message that carries a frame."""
    return b"".join((_prefix(chunk_bytes(chunks)), *chunks))


def unwrap(message: bytes) -> memoryview:
    """The frame in a serialised message, as a view of it.

    Raises:
        CorruptData: the bytes are not one `ExpertFrame`.

    """
    size, position, shift = 0, 1, 0
    if len(message) < 2 or message[0] != _TAG:
        raise CorruptData("the message is not an ExpertFrame: it must hold the field `frame` only")
    while position < min(len(message), 6):
        byte = message[position]
        position += 1
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if position + size != len(message):
        raise CorruptData(f"the ExpertFrame announces {size} bytes, {len(message) - position} came")
    return memoryview(message)[position:]


def _prefix(size: int) -> bytes:
    out = bytearray((_TAG,))
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)
