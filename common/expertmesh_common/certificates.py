"""A development certificate authority: one CA, and certificates of it that the parts of a mesh present.

The authority's key lies beside the folder, not in it: the folder is what gets copied to other machines.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from expertmesh_common.errors import InvalidInput
from expertmesh_common.tls import MESH_NAME, TlsFiles

VALID_DAYS = 365
AUTHORITY_DAYS = 3650
AUTHORITY_NAME = "expertmesh development CA"


def authority_folder(folder: Path) -> Path:
    """Where the key of the authority of `folder` is kept."""
    return folder.with_name(f"{folder.name}.authority")


def mint_development_ca(folder: Path, hosts: Sequence[str], days: float = VALID_DAYS) -> TlsFiles:
    """A new authority, and in `folder` `ca.pem`, `cert.pem` and `key.pem` (mode 0600) for the mesh and `hosts`."""
    authority = authority_folder(folder)
    authority.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    _write(authority / "ca-key.pem", _key_bytes(key))
    _write(authority / "ca.pem", _authority(key).public_bytes(serialization.Encoding.PEM))
    return issue(authority, folder, hosts, days)


def issue(authority: Path, folder: Path, hosts: Sequence[str], days: float = VALID_DAYS) -> TlsFiles:
    """Files for one more part of the mesh of `authority`, with a key of its own.

    Raises:
        InvalidInput: there is no authority.

    """
    ca, ca_key = _read_authority(authority)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(key.public_key(), ca_key, hosts, days)
    _write(folder / "ca.pem", ca.public_bytes(serialization.Encoding.PEM))
    _write(folder / "key.pem", _key_bytes(key))
    _write(folder / "cert.pem", certificate.public_bytes(serialization.Encoding.PEM))
    return TlsFiles.in_folder(folder)


def renew(folder: Path, hosts: Sequence[str] = (), authority: Path | None = None, days: float = VALID_DAYS) -> TlsFiles:
    """A new `cert.pem` for the key in `folder`, from now on; for the old hosts and `hosts`.

    The key stays, so one file changes at once and running servers never see files that do not fit together.

    Raises:
        InvalidInput: a file or the authority is missing, or is of another authority.

    """
    files = TlsFiles.in_folder(folder)
    ca, ca_key = _read_authority(authority or authority_folder(folder))
    old, key = read_certificate(files.certificate), _read_key(files.key)
    if read_certificate(files.ca).public_key() != ca.public_key():
        raise InvalidInput(f"{files.ca} is of another authority than {authority or authority_folder(folder)}")
    certificate = _certificate(key.public_key(), ca_key, (*hosts_of(old), *hosts), days)
    _write(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    return files


def development_ca(folder: Path, hosts: Sequence[str]) -> TlsFiles:
    """The files in `folder` while they are good for a day more, else renewed by their authority, else all new.

    Kept, because other meshes of this user and copies on other machines rely on them.
    """
    try:
        files = TlsFiles.in_folder(folder)
        certificate = read_certificate(files.certificate)
    except InvalidInput:
        return mint_development_ca(folder, hosts)
    good = certificate.not_valid_after_utc > dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    if good and MESH_NAME in hosts_of(certificate):
        return files
    try:
        return renew(folder, hosts)
    except InvalidInput:
        return mint_development_ca(folder, hosts)


def read_certificate(path: Path) -> x509.Certificate:
    """Raises InvalidInput: the file is missing or no PEM certificate."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInput(f"{path} holds no PEM certificate") from error


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The names and addresses that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names)


def _read_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    if not (folder / "ca-key.pem").is_file():
        raise InvalidInput(
            f"there is no authority's key in {folder}: it stays on the machine where `expertmesh certs init` ran"
        )
    return read_certificate(folder / "ca.pem"), _read_key(folder / "ca-key.pem")


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError):
        raise InvalidInput(f"{path} holds no unencrypted PEM key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidInput(f"{path} holds another kind of key than `expertmesh certs` makes")
    return key


def _write(path: Path, data: bytes) -> None:
    """The whole file at once, readable by this user only: servers may be reading it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    partial.replace(path)


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _builder(subject: str, key: ec.EllipticCurvePublicKey, days: float) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(AUTHORITY_NAME))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + min(dt.timedelta(minutes=-5), dt.timedelta(days=days - 1)))
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return (
        _builder(AUTHORITY_NAME, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _certificate(
    key: ec.EllipticCurvePublicKey, ca_key: ec.EllipticCurvePrivateKey, hosts: Sequence[str], days: float
) -> x509.Certificate:
    names = x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys((MESH_NAME, *hosts))])
    both_ways = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    return (
        _builder("expertmesh", key, days)
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
