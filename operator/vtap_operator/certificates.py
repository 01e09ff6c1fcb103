"""Our own certificate authority: what is to be in which Secret, decided by what is there and the time. No I/O.

The authority lives ten years, what it issues ninety days; both are renewed at two thirds of their life. A new authority is
trusted for a day before it issues anything, as everybody has to read it first; the old one is trusted until it expires.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=90)
OVERLAP = timedelta(days=1)
"""How long a new authority is known before it issues: mounted Secrets reach every pod within minutes."""
SKEW = timedelta(minutes=5)
"""Certificates are valid from a little before now, as clocks differ."""
RENEW_AT = 2 / 3

Data = Mapping[str, bytes]
"""What a Secret holds, by file name."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate that somebody needs. A server's has names; a client's is known by its common name."""

    secret: str
    common_name: str
    names: tuple[str, ...] = ()

    @property
    def is_server(self) -> bool:
        """Whether it proves a server, or else a client."""
        return bool(self.names)


def agent_leaf() -> Leaf:
    """All agents' client certificate."""
    return Leaf("vtap-agent-tls", "vtap-agent")


def collector_leaf(name: str, namespace: str) -> Leaf:
    """A collector's server certificate; `name` is its Service's."""
    return Leaf(f"{name}-tls", f"{name}.{namespace}.svc", (f"{name}.{namespace}.svc", f"{name}.{namespace}", name, "localhost"))


def authority(held: Data | None, now: datetime) -> Data:
    """What the authority's Secret is to hold: ca.crt (all that are trusted), tls.crt and tls.key (the one that issues),
    next.crt and next.key (the one to come). What can't be read is made anew."""
    current = _pair(held, "tls")
    if current is None or _expired(current[0], now):
        coming = _pair(held, "next")
        current, coming = (coming if coming is not None and not _expired(coming[0], now) else _new_authority(now)), None
    else:
        coming = _pair(held, "next")
    if coming is None and renew_after(current[0]) <= now:
        coming = _new_authority(now)
    if coming is not None and coming[0].not_valid_before_utc + SKEW + OVERLAP <= now:
        current, coming = coming, None
    trusted = _bundle([current[0], *([coming[0]] if coming else []), *_trusted(held)], now)
    data = {"ca.crt": trusted, "tls.crt": _pem(current[0]), "tls.key": _key_pem(current[1])}
    if coming is not None:
        data |= {"next.crt": _pem(coming[0]), "next.key": _key_pem(coming[1])}
    return data


def issued(leaf: Leaf, held: Data | None, ca: Data, now: datetime) -> Data:
    """What a certificate's Secret is to hold: ca.crt, tls.crt and tls.key. The same as `held` where nothing has to change."""
    issuer = _pair(ca, "tls")
    if issuer is None:
        raise ValueError("the authority's Secret holds no authority")
    current = _pair(held, "tls")
    if current is None or not _still_good(leaf, current[0], issuer[0], now):
        current = _new_leaf(leaf, issuer, now)
    return {"ca.crt": ca["ca.crt"], "tls.crt": _pem(current[0]), "tls.key": _key_pem(current[1])}


def expiry(data: Data) -> datetime | None:
    """When a Secret's certificate expires."""
    pair = _pair(data, "tls")
    return None if pair is None else pair[0].not_valid_after_utc


def renew_after(certificate: x509.Certificate) -> datetime:
    """Two thirds of its life."""
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_before_utc + life * RENEW_AT


_Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def _pair(data: Data | None, name: str) -> _Pair | None:
    """A certificate and its key, where they are there and fit."""
    try:
        certificate = x509.load_pem_x509_certificate((data or {})[f"{name}.crt"])
        key = serialization.load_pem_private_key((data or {})[f"{name}.key"], password=None)
    except (KeyError, ValueError, TypeError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        return None
    return certificate, key


def _trusted(held: Data | None) -> Sequence[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates((held or {})["ca.crt"])
    except (KeyError, ValueError):
        return ()


def _bundle(certificates: Sequence[x509.Certificate], now: datetime) -> bytes:
    """Each once, and none that has expired."""
    texts = dict.fromkeys(_pem(one) for one in certificates if not _expired(one, now))
    return b"".join(texts)


def _expired(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_after_utc <= now


def _still_good(leaf: Leaf, held: x509.Certificate, issuer: x509.Certificate, now: datetime) -> bool:
    if renew_after(held) <= now or held.subject != _name(leaf.common_name):
        return False
    try:
        held.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return _names_of(held) == leaf.names


def _names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(one.value) for one in found)


def _name(common: str) -> x509.Name:
    """A common name has at most 64 characters (RFC 5280); a longer one is cut, as names count that are alternative names."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _new_authority(now: datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"vtap-ca {now.astimezone(UTC):%Y-%m-%d}")
    built = (
        _builder(name, name, key, now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return built.sign(key, hashes.SHA256()), key


def _new_leaf(leaf: Leaf, issuer: _Pair, now: datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if leaf.is_server else ExtendedKeyUsageOID.CLIENT_AUTH
    built = (
        _builder(_name(leaf.common_name), issuer[0].subject, key, now, LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer[1].public_key()), critical=False)
    )
    if leaf.names:
        built = built.add_extension(x509.SubjectAlternativeName([_alternative(name) for name in leaf.names]), critical=False)
    return built.sign(issuer[1], hashes.SHA256()), key


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now - SKEW + life)
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


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
