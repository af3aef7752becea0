"""A certificate authority of one's own, the server's certificate and the nodes' keys.

Elliptic curve P-384 throughout: Flower takes NIST curves only, and one curve is enough.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ddfed.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

#: Certificates hold from a day before they are made, for machines whose clocks are behind.
BACKDATED = timedelta(days=1)
#: What has not run out now may run out in the middle of a run.
_SOON = timedelta(days=1)


def make_authority(certificate: Path, key: Path, days: int = 3650) -> None:
    """Make an authority that signs servers and nothing below itself.

    Args:
        certificate: PEM file to write; every site needs it.
        key: PEM file to write; stays with whoever runs the federation, and off the server.
        days: how long it holds.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    private, name = _new_key(), _name("ddfed federation")
    builder = _dated(name, name, private.public_key(), days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(private.public_key())
    builder = builder.add_extension(identifier, critical=False)
    write_secret(key, _pem(private))
    _write_certificate(certificate, builder.sign(private, hashes.SHA384()))


def issue(authority: tuple[Path, Path], certificate: Path, key: Path, hosts: Sequence[str], days: int = 730) -> None:
    """A server certificate for the names and addresses it will be reached by.

    Args:
        authority: certificate and key, as `make_authority` wrote them.
        certificate: PEM file to write.
        key: PEM file to write.
        hosts: DNS names and IP addresses.
        days: how long it holds.

    Raises:
        ConfigError: no hosts.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import ExtendedKeyUsageOID

    if not hosts:
        raise ConfigError("a server certificate needs at least one host name or address")
    signer = x509.load_pem_x509_certificate(authority[0].read_bytes())
    signing = serialization.load_pem_private_key(authority[1].read_bytes(), password=None)
    private = _new_key()
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.SubjectAlternativeName([_general_name(host) for host in hosts]), False),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False),  # type: ignore[arg-type]
        (x509.SubjectKeyIdentifier.from_public_key(private.public_key()), False),
    ]
    builder = _dated(_name(hosts[0]), signer.subject, private.public_key(), days)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    write_secret(key, _pem(private))
    _write_certificate(certificate, builder.sign(signing, hashes.SHA384()))  # type: ignore[arg-type]


def make_node_key(key: Path) -> None:
    """A SuperNode's key in OpenSSH format, and beside it ``.pub``, which the SuperLink is told."""
    from cryptography.hazmat.primitives import serialization

    private = _new_key()
    write_secret(
        key,
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        ),
    )
    public = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    key.with_name(f"{key.name}.pub").write_bytes(public + b"\n")


def check(authority: Path, certificate: Path, key: Path, host: str) -> None:
    """Refuse certificates that no site would accept, before anything is started.

    Args:
        authority: the authority's certificate.
        certificate: the server's.
        key: the server's key.
        host: name or address that the server is reached by.

    Raises:
        ConfigError: a file is missing or no certificate, another authority signed it, it has run out or does not
            hold yet, it is not for this host, or the key is another's.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    signer, server = _read(authority), _read(certificate)
    again = f"Make new ones: ddfed deploy init, with --host {host}"
    try:
        server.verify_directly_issued_by(signer)
    except (ValueError, TypeError, InvalidSignature):
        raise ConfigError(f"{certificate} was not signed by {authority}; every site would refuse it. {again}") from None
    now = datetime.now(UTC)
    for path, found in ((authority, signer), (certificate, server)):
        if not found.not_valid_before_utc <= now <= found.not_valid_after_utc - _SOON:
            raise ConfigError(
                f"{path} holds from {found.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{found.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and now it is {now:%Y-%m-%d %H:%M}; "
                f"check the clock of this machine. {again}"
            )
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if _general_name(host) not in list(names):
        held = ", ".join(str(name.value) for name in names)
        raise ConfigError(f"{certificate} is for {held}, not for {host!r}. {again}")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{key} is not the key of {certificate} ({error}). {again}") from None


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, from its first byte on.

    Raises:
        ConfigError: it exists; a key is never overwritten.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"{path} exists, and a key is never overwritten; remove it or choose another folder"
        ) from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP384R1())


def _pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(common: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    # X.509 allows 64 characters here; clients look at the alternative names.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _general_name(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(**granted: bool) -> x509.KeyUsage:
    from cryptography import x509

    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
    return x509.KeyUsage(**{name: granted.get(name, False) for name in names})


def _dated(subject: x509.Name, issuer: x509.Name, public: object, days: int) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)  # type: ignore[arg-type]
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - BACKDATED).not_valid_after(now + timedelta(days=days))


def _write_certificate(path: Path, certificate: x509.Certificate) -> None:
    from cryptography.hazmat.primitives import serialization

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _read(path: Path) -> x509.Certificate:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no certificate that can be read: {error}") from None
