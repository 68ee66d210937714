"""What the certificates of a folder say, for people and programs."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes

from expertmesh.tls_diagnosis import own_problem
from expertmesh_common.certificates import hosts_of, read_certificate
from expertmesh_common.tls import TlsFiles


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """Times are UTC, ISO 8601; `problem` is None if a mesh would accept the files."""

    hosts: tuple[str, ...]
    until: str
    days_left: int
    authority: str
    authority_until: str
    fingerprint: str
    problem: str | None


def facts_of(files: TlsFiles) -> CertificateFacts:
    """Raises InvalidInput: a file holds no certificate."""
    own, authority = read_certificate(files.certificate), read_certificate(files.ca)
    left = own.not_valid_after_utc - dt.datetime.now(dt.UTC)
    return CertificateFacts(
        hosts=hosts_of(own),
        until=_text(own.not_valid_after_utc),
        days_left=left.days,
        authority=authority.subject.rfc4514_string(),
        authority_until=_text(authority.not_valid_after_utc),
        fingerprint=own.fingerprint(hashes.SHA256()).hex(),
        problem=own_problem(files),
    )


def _text(time: dt.datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
