"""Fields that this program does not know: what a request asks for with one would silently not happen."""

from __future__ import annotations

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from expertmesh_common.errors import InvalidInput

__all__ = ["refuse_unknown_fields"]


def refuse_unknown_fields(message: Message, path: str = "") -> None:
    """Nothing happens if every field of `message`, and of what it holds, is known.

    Raises:
        InvalidInput: one is not; it is named by the path to it and its number.

    """
    unknown = UnknownFieldSet(message)
    if len(unknown):
        number = unknown[0].field_number
        raise InvalidInput(
            f"{path}field {number} of {message.DESCRIPTOR.name} is not known here: "
            "this gateway is older than the caller, or the number is wrong"
        )
    for field, value in message.ListFields():
        if field.message_type is not None:
            for number, part in enumerate(value if field.is_repeated else (value,)):
                place = f"[{number}]" if field.is_repeated else ""
                refuse_unknown_fields(part, f"{path}{field.name}{place}.")
