"""TLS for callers without certificates: the server shows who it is, and a token says who they are."""

from __future__ import annotations

import logging
import ssl
from typing import Any, Self

from expertmesh_common.tls import TlsFiles

__all__ = ["DoorContext"]

log = logging.getLogger(__name__)


class DoorContext(ssl.SSLContext):
    """Shows the mesh's certificate, demands none; a new connection sees what the files hold then."""

    _files: TlsFiles
    _stamp: object
    _inner: ssl.SSLContext

    def __new__(cls, _files: TlsFiles) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, files: TlsFiles) -> None:
        self._files, self._stamp, self._inner = files, files.stamp(), _serving(files)

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:  # noqa: ANN401 - those of SSLContext
        self._renew()
        return self._inner.wrap_bio(*arguments, **named)

    def _renew(self) -> None:
        """Files that are being replaced do not fit together for a moment: then the last good ones stay."""
        try:
            stamp = self._files.stamp()
            if stamp != self._stamp:
                self._inner, self._stamp = _serving(self._files), stamp
        except OSError as error:
            log.warning("certificates in %s cannot be used yet: %s", self._files.certificate.parent, error)


def _serving(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # clients of all sorts come here
    context.load_cert_chain(files.certificate, files.key)
    return context
