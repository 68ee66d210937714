"""Mutual TLS from three PEM files, which may be replaced while everything runs."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import grpc

from expertmesh_common.errors import InvalidInput

log = logging.getLogger(__name__)

# Every certificate of a mesh carries this name, and callers ask for it: parts move between machines and addresses, so
# what is proven is membership of the mesh (its authority signed it), not an address.
MESH_NAME = "expertmesh"

Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of one party: the authority it trusts, its certificate and its key."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def in_folder(cls, folder: Path) -> TlsFiles:
        """`ca.pem`, `cert.pem` and `key.pem` of `folder`.

        Raises:
            InvalidInput: one of them is missing.

        """
        files = cls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
        for path in files.paths:
            if not path.is_file():
                raise InvalidInput(f"{path} is missing; a TLS folder holds ca.pem, cert.pem and key.pem")
        return files

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        return (self.ca, self.certificate, self.key)

    def stamp(self) -> Stamp:
        """Equal as long as no file was changed or replaced."""
        return tuple((s.st_mtime_ns, s.st_ino, s.st_size) for s in (path.stat() for path in self.paths))

    def context(self, protocol: int) -> ssl.SSLContext:
        """What the files say now: TLS 1.3, the other side must have a certificate of our authority.

        Raises:
            OSError: a file cannot be read, is no PEM, or key and certificate do not belong together.

        """
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self.ca)
        context.load_cert_chain(self.certificate, self.key)
        context.verify_mode = ssl.CERT_REQUIRED
        return context


class RenewingContext(ssl.SSLContext):
    """A context whose handshakes use what the files hold at that moment. Safe for several threads.

    Files that are being replaced do not fit together for a moment: the last ones that did are used until they do.
    """

    _files: TlsFiles
    _protocol: int
    _lock: threading.Lock
    _stamp: Stamp
    _inner: ssl.SSLContext

    def __new__(cls, _files: TlsFiles, protocol: int) -> Self:
        return super().__new__(cls, protocol)

    def __init__(self, files: TlsFiles, protocol: int) -> None:
        self._files, self._protocol, self._lock = files, protocol, threading.Lock()
        self._stamp = files.stamp()
        self._inner = files.context(protocol)

    def wrap_socket(self, *arguments: Any, **named: Any) -> ssl.SSLSocket:  # noqa: ANN401 - those of SSLContext
        return self._fresh().wrap_socket(*arguments, **named)

    def _fresh(self) -> ssl.SSLContext:
        with self._lock:
            try:
                stamp = self._files.stamp()
                if stamp != self._stamp:
                    self._inner, self._stamp = self._files.context(self._protocol), stamp
            except OSError as error:
                log.warning("certificates in %s cannot be used yet: %s", self._files.certificate.parent, error)
            return self._inner


def renewing_server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that demand a client certificate; every new connection sees what the files hold then."""
    known = files.stamp()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal known
        try:
            stamp = files.stamp()
            if stamp == known:
                return None
            files.context(ssl.PROTOCOL_TLS_SERVER)  # they must fit together, or every handshake would fail
            configuration, known = _configuration(files), stamp
        except OSError as error:
            log.warning("certificates in %s cannot be used yet: %s", files.certificate.parent, error)
            return None
        return configuration

    # None means "as before", which its type stub does not know.
    fetcher = cast("Callable[[], grpc.ServerCertificateConfiguration]", changed)
    return grpc.dynamic_ssl_server_credentials(_configuration(files), fetcher, require_client_authentication=True)


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    pair = (files.key.read_bytes(), files.certificate.read_bytes())
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=files.ca.read_bytes())
