"""Process logs: one line an event on standard error, `key=value` facts last, as text or as JSON.

Every line of a request carries its id. Prompts, answers and tokens of access are never logged.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal

from expertmesh_common.errors import InvalidInput
from expertmesh_common.observability.request_context import request_id

__all__ = ["JsonLines", "TextLines", "setup_logs"]

LEVEL_VARIABLE = "EXPERTMESH_LOG_LEVEL"
FORMAT_VARIABLE = "EXPERTMESH_LOG_FORMAT"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

Format = Literal["text", "json"]


def setup_logs(
    level: str | None = None,
    format: Format | None = None,  # noqa: A002 - what operators call it
    environment: Mapping[str, str] | None = None,
) -> None:
    """Send this process's logs to standard error. Called once, at the edge.

    What is None comes from EXPERTMESH_LOG_LEVEL (INFO) and EXPERTMESH_LOG_FORMAT (text).

    Raises:
        InvalidInput: one of them is not valid.

    """
    given = os.environ if environment is None else environment
    chosen = _one_of(LEVEL_VARIABLE, level or given.get(LEVEL_VARIABLE) or "INFO", str.upper, LEVELS)
    shape = _one_of(FORMAT_VARIABLE, format or given.get(FORMAT_VARIABLE) or "text", str.lower, ("text", "json"))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if shape == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(chosen)
    # The loop's own debug lines and gRPC's cython chatter explain nothing about the mesh.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("grpc").setLevel(logging.WARNING)


class TextLines(logging.Formatter):
    """`HH:MM:SS I logger message`, and `request_id=...` behind it within a request."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname).1s %(name)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - named by its base
        line = super().formatMessage(record)
        found = request_id()
        return f"{line} request_id={found}" if found else line


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and request_id and error where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if found := request_id():
            line["request_id"] = found
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _one_of(name: str, value: str, normal: Callable[[str], str], allowed: tuple[str, ...]) -> str:
    found = normal(value)
    if found not in allowed:
        raise InvalidInput(f"{name} is {value!r}; allowed are {', '.join(allowed)}")
    return found
