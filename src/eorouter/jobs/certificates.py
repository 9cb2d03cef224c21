"""A private authority and one certificate under it, for dispatchers, scheduler and workers to know each other by.

Being signed by the authority is what admits a part; names are for people who look at a connection. The authority's key
is thrown away: nobody can ever sign another, and to renew means to make a folder anew and hand it to every part.
"""

import ipaddress
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from eorouter.settings import BadSetting
from eorouter.types import utc_now

FILES = ("ca.crt", "tls.crt", "tls.key")
LIFE = timedelta(days=3650)
_EARLIER = timedelta(hours=1)  # clocks of several machines differ
_NAME_MAX = 253


def make(folder: Path, hosts: Sequence[str]) -> list[Path]:
    """Write the authority's certificate, a certificate that names `hosts`, and its key; returns the files.

    Raises:
        BadSetting: a file of that name is there already, a host is no name or address, the folder cannot be written to.
    """
    names = [_name(host) for host in (*hosts, "localhost", "127.0.0.1")]
    paths = [folder / name for name in FILES]
    taken = [str(path) for path in paths if path.exists()]
    if taken:
        raise BadSetting(f"{', '.join(taken)} exists already and is kept. Choose another folder, or remove it first.")
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _authority(authority_key)
    certificate = _signed(key, names, authority, authority_key)
    encoding = serialization.Encoding.PEM
    plain = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, data in zip(
            paths, (authority.public_bytes(encoding), certificate.public_bytes(encoding), plain), strict=True
        ):
            _write(path, data)
    except OSError as error:
        raise BadSetting(f"{folder} cannot be written to: {error.strerror}. Choose another folder.") from error
    return paths


def _write(path: Path, data: bytes) -> None:
    """Never a moment readable by others, and never over a file that somebody else made meanwhile."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not host or len(host) > _NAME_MAX or not host.isascii() or any(sign.isspace() or sign in "/:@" for sign in host):
        raise BadSetting(f"--host {host!r} is neither a host's name nor an IP address, such as scheduler.lan.")
    return x509.DNSName(host)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _started(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = utc_now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + LIFE)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = _subject("eorouter authority")
    return (
        _started(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _signed(
    key: ec.EllipticCurvePrivateKey,
    names: Sequence[x509.GeneralName],
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    both_ends = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _started(_subject("eorouter part"), authority.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(both_ends, critical=False)
        .add_extension(issuer, critical=False)
        .add_extension(x509.SubjectAlternativeName(list(dict.fromkeys(names))), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
