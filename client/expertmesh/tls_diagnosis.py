"""Why mutual TLS does not come about, in words; gRPC itself only says that a socket was closed."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Protocol

MESH_NAME = "expertmesh"
CONNECT_S = 2.0


class PemFiles(Protocol):
    """The authority to trust, the own certificate and its key."""

    @property
    def ca(self) -> Path: ...
    @property
    def certificate(self) -> Path: ...
    @property
    def key(self) -> Path: ...


def own_problem(files: PemFiles) -> str | None:
    """What is wrong with the files themselves, None if they are good.

    The certificate is shown to itself, so whatever a peer would object to is found before anybody connects.
    """
    try:
        server, client = _context(ssl.PROTOCOL_TLS_SERVER, files), _context(ssl.PROTOCOL_TLS_CLIENT, files)
    except ssl.SSLError as error:
        return f"{files.certificate.parent} cannot be used: {_reason(error)}; `expertmesh certs renew` makes new files"
    except OSError as error:
        missing = next((path for path in (files.ca, files.certificate, files.key) if not path.is_file()), None)
        return f"cannot read TLS file {error.filename or missing or files.certificate.parent}: {error.strerror}"
    try:
        _handshake(server, client)
    except ssl.SSLError as error:
        return f"certificate {files.certificate} is not good: {_reason(error)}; renew it with `expertmesh certs renew`"
    return None


def perhaps_tls(message: str) -> bool:
    """Whether gRPC's words about a failed connection may hide a refused certificate; else nobody need look closer."""
    return "handshake" in message or "Socket closed" in message


def refusal(address: str, files: PemFiles | None) -> str | None:
    """Why `host:port` and we do not come together, None if TLS is not the reason or nobody listens there."""
    host, _, port = address.rpartition(":")
    if address.startswith("unix:") or not port.isdigit():
        return None
    if files is not None and (problem := own_problem(files)) is not None:
        return problem
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_S) as raw:
            return _speaks_tls(raw, address) if files is None else _objection(raw, files, address)
    except OSError:
        return None


def _objection(raw: socket.socket, files: PemFiles, address: str) -> str | None:
    context = _context(ssl.PROTOCOL_TLS_CLIENT, files)
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(raw, server_hostname=MESH_NAME) as stream:
            # With TLS 1.3 a server judges our certificate after our side is done: it says something, or it hangs up.
            greeted = bool(stream.recv(1))
    except ssl.SSLCertVerificationError as error:
        return f"the certificate of {address} is not accepted here: {error.verify_message}"
    except ssl.SSLError as error:
        if error.reason == "WRONG_VERSION_NUMBER":
            return f"{address} does not speak TLS: leave out --tls, or start it with --tls"
        return f"{address} does not accept the certificate {files.certificate}: {_reason(error)}"
    except ConnectionError:
        greeted = False
    if greeted:
        return None
    return (
        f"{address} does not accept the certificate {files.certificate}: it is of another authority than the server "
        "trusts; copy the folder of certificates from there"
    )


def _speaks_tls(raw: socket.socket, address: str) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with context.wrap_socket(raw, server_hostname=MESH_NAME):
            return f"{address} demands certificates: pass the folder that holds them with --tls"
    except OSError:
        return None


def _context(protocol: int, files: PemFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.load_verify_locations(files.ca)
    context.load_cert_chain(files.certificate, files.key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Both sides in memory, until neither has anything to say."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=MESH_NAME),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while sides:
        for side in tuple(sides):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            sides.remove(side)


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or str(error)).lower().replace("_", " ")
