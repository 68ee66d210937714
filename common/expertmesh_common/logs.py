"""Process logs: one line an event on standard error, `key=value` facts last."""

from __future__ import annotations

import logging
import sys

FORMAT = "%(asctime)s %(levelname).1s %(name)s %(message)s"


def setup_logs(level: str = "INFO") -> None:
    """Send this process's logs to standard error. Called once, at the edge."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(FORMAT, "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # The loop's own debug lines and gRPC's cython chatter explain nothing about the mesh.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("grpc").setLevel(logging.WARNING)
