"""The error tree of the toolchain.

ForgeError
├── SourceError         the model file cannot be read: missing, truncated, not GGUF
├── UnsupportedModel    readable, but of a family or shape this toolchain does not convert
├── BadWeights          a tensor is missing, has the wrong shape, or holds NaN or infinity
├── TextsError          calibration or held-out text is missing or too short
├── CarveError          the carving was asked for something the model cannot give
└── BundleError         a bundle is missing, damaged, or not what the command needs

Every message says what was wrong, with what, and what to do about it. Each class carries the gRPC status that the
command line turns into an exit code and a background job into its result.
"""

from __future__ import annotations

import grpc

__all__ = [
    "BadWeights",
    "BundleError",
    "CarveError",
    "ForgeError",
    "SourceError",
    "TextsError",
    "UnsupportedModel",
]


class ForgeError(Exception):
    """Something the person running the toolchain can understand and fix."""

    status: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT


class SourceError(ForgeError):
    """The model file cannot be read."""


class UnsupportedModel(ForgeError):
    """The model is readable, but not of a kind this toolchain converts."""


class BadWeights(ForgeError):
    """A tensor is missing, misshapen or not finite."""


class TextsError(ForgeError):
    """Calibration or held-out text is missing or too short."""


class CarveError(ForgeError):
    """The carving was asked for something the model cannot give."""


class BundleError(ForgeError):
    """A bundle is missing, damaged, or lacks what the command needs."""

    status = grpc.StatusCode.DATA_LOSS
