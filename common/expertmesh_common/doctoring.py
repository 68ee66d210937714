"""What `expertmesh doctor` finds out about certificates: whether they belong together, and until when they are good."""

from __future__ import annotations

import datetime as dt
import stat
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from expertmesh.cli.doctor.findings import Asked, Finding
from expertmesh.local_access import home_folder
from expertmesh_common.errors import InvalidInput
from expertmesh_common.security import MESH_NAME, TlsFiles

AREA = "certificates"
SOON = dt.timedelta(days=30)
RENEW = "make new ones: expertmesh certs renew"


def check(asked: Asked) -> Iterator[Finding]:
    """The folder that --tls names, else the one that `up --secure` uses, if it is there."""
    folder = asked.tls or home_folder() / "tls"
    if asked.tls is None and not folder.exists():
        yield Finding(AREA, "folder", "ok", f"none in {folder}, which is only needed for --secure and --tls")
        return
    yield from judged(folder, dt.datetime.now(dt.UTC))


def judged(folder: Path, now: dt.datetime) -> Iterator[Finding]:
    """Lines about the files of a folder."""
    try:
        files = TlsFiles.in_folder(folder)
        authority = x509.load_pem_x509_certificate(files.ca.read_bytes())
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
    except (InvalidInput, OSError, ValueError, TypeError) as error:
        yield Finding(AREA, "folder", "fail", str(error), f"{folder} must hold ca.pem, cert.pem and key.pem; {RENEW}")
        return
    yield _ends("ca.pem", authority, now)
    yield _ends("cert.pem", certificate, now)
    yield from _belong(authority, certificate, same_key=key.public_key() == certificate.public_key())
    mode = stat.S_IMODE(files.key.stat().st_mode)
    if mode & 0o077:
        advice = f"chmod 600 {files.key}"
        yield Finding(AREA, "key.pem", "warn", f"other users may read it (mode {mode:o})", advice)


def _ends(name: str, certificate: x509.Certificate, now: dt.datetime) -> Finding:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < start:
        return Finding(AREA, name, "fail", f"good only from {start:%Y-%m-%d %H:%M} UTC", "is the clock here right?")
    if now >= end:
        return Finding(AREA, name, "fail", f"ended on {end:%Y-%m-%d}", RENEW)
    says = f"good until {end:%Y-%m-%d} ({(end - now).days} days)"
    return Finding(AREA, name, *(("warn", says, RENEW) if end - now < SOON else ("ok", says)))


def _belong(authority: x509.Certificate, certificate: x509.Certificate, *, same_key: bool) -> Iterator[Finding]:
    try:
        certificate.verify_directly_issued_by(authority)
        yield Finding(AREA, "chain", "ok", "cert.pem was signed by ca.pem")
    except (ValueError, TypeError, InvalidSignature):
        yield Finding(AREA, "chain", "fail", "cert.pem was not signed by ca.pem", "copy all three files of one mesh")
    if not same_key:
        advice = "copy all three files of one mesh"
        yield Finding(AREA, "key.pem", "fail", "it is not the key of cert.pem", advice)
    if MESH_NAME not in _names(certificate):
        yield Finding(
            AREA, "cert.pem", "fail", f"it does not carry the name {MESH_NAME!r}, which callers demand", RENEW
        )


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)
