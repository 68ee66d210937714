"""A development certificate authority: one CA and one certificate that every part of a local mesh presents."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from expertmesh_common.errors import InvalidInput
from expertmesh_common.security import MESH_NAME, TlsFiles

VALID_DAYS = 365


def mint_development_ca(folder: Path, hosts: Sequence[str]) -> TlsFiles:
    """Write `ca.pem`, `cert.pem` and `key.pem` (mode 0600) into `folder`; the certificate names the mesh and `hosts`.

    The authority's key is thrown away: to add a host, mint again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = _authority(ca_key)
    certificate = _certificate(key, ca_key, hosts)
    _write(folder / "ca.pem", ca.public_bytes(serialization.Encoding.PEM))
    _write(folder / "cert.pem", certificate.public_bytes(serialization.Encoding.PEM))
    _write(folder / "key.pem", _key_bytes(key))
    return TlsFiles.in_folder(folder)


def development_ca(folder: Path, hosts: Sequence[str]) -> TlsFiles:
    """The authority's files in `folder`: those that are there while they are good for a day more, else new ones.

    Kept, because other meshes of this user and copies on other machines rely on them.
    """
    try:
        files = TlsFiles.in_folder(folder)
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    except (InvalidInput, ValueError):
        return mint_development_ca(folder, hosts)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    good = certificate.not_valid_after_utc > dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    if good and MESH_NAME in names.get_values_for_type(x509.DNSName):
        return files
    return mint_development_ca(folder, hosts)


def _write(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=VALID_DAYS))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return (
        _builder("expertmesh development CA", "expertmesh development CA", key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _certificate(
    key: ec.EllipticCurvePrivateKey, ca_key: ec.EllipticCurvePrivateKey, hosts: Sequence[str]
) -> x509.Certificate:
    names = x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys((MESH_NAME, *hosts))])
    both_ways = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    return (
        _builder("expertmesh", "expertmesh development CA", key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(names, critical=False)
        .add_extension(both_ways, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
