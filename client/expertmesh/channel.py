"""How a client reaches a mesh: address, token, certificates, and the options of the gRPC channel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from expertmesh.errors import InvalidRequest
from expertmesh.local_access import local_tls_folder, local_token
from expertmesh.tls_diagnosis import own_problem

DEFAULT_ADDRESS = "localhost:7070"
MAX_MESSAGE_BYTES = 64 * 2**20

# A dead server is noticed within about 4 s, and one that came back is found again at once.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 3000),  # also the time limit of one attempt, and a mesh may be far
    ("grpc.max_reconnect_backoff_ms", 1000),
)

# Every certificate of a mesh carries this name, wherever its part runs.
TLS_CHANNEL_OPTIONS = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", "expertmesh"))

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files for mutual TLS: the authority to trust, this client's certificate and its key."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def in_folder(cls, folder: str | Path) -> Tls:
        """`ca.pem`, `cert.pem` and `key.pem` of a folder, as `expertmesh up --secure` writes them."""
        base = Path(folder)
        return cls(base / "ca.pem", base / "cert.pem", base / "key.pem")

    def credentials(self) -> grpc.ChannelCredentials:
        """Credentials of a gRPC channel.

        Raises:
            InvalidRequest: a file cannot be read, or no mesh would accept the certificate: it expired, say.

        """
        if (problem := own_problem(self)) is not None:
            raise InvalidRequest(problem)
        try:
            return grpc.ssl_channel_credentials(
                self.ca.read_bytes(), self.key.read_bytes(), self.certificate.read_bytes()
            )
        except OSError as error:
            raise InvalidRequest(f"cannot read TLS file {error.filename}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Connection:
    """Where and as whom. Without a token or certificates: those that a mesh of this user on this machine left."""

    address: str = DEFAULT_ADDRESS
    token: str | None = None
    tls: Tls | None = None

    def metadata(self) -> Metadata:
        """What every call carries.

        Raises:
            InvalidRequest: the token cannot travel in a header.

        """
        token = self.token if self.token is not None else local_token(self.address)
        if token is not None and not (token.isascii() and token.isprintable()):
            raise InvalidRequest("a token is printable ASCII without line breaks; this one is not")
        return () if token is None else (("authorization", f"Bearer {token}"),)

    def open(self) -> grpc.Channel:
        tls = self._tls()
        if tls is None:
            return grpc.insecure_channel(self.address, CHANNEL_OPTIONS)
        return grpc.secure_channel(self.address, tls.credentials(), TLS_CHANNEL_OPTIONS)

    def open_async(self) -> grpc.aio.Channel:
        tls = self._tls()
        if tls is None:
            return grpc.aio.insecure_channel(self.address, CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(self.address, tls.credentials(), TLS_CHANNEL_OPTIONS)

    def _tls(self) -> Tls | None:
        if self.tls is not None:
            return self.tls
        folder = local_tls_folder(self.address)
        return None if folder is None else Tls.in_folder(folder)
