"""The webhook's certificates and how they are replaced without a moment of distrust. Pure.

    what the two Secrets hold, what is trusted and shown, the time --decide--> what they should hold

    nothing      make a CA and a leaf                                   bundle: CA
    leaf old     new leaf of the same CA                                bundle: CA
    CA old       PUBLISH the next CA beside it                          bundle: CA, next     leaf: CA's
    known        LEAF: sign by the next CA, once everyone had           bundle: next, CA     leaf: next's
                 SETTLE_SECONDS to learn it
    all show it  DROP the old CA                                        bundle: next         leaf: next's

Each step is decided from what is there, so a leader that dies in the middle is followed by one that goes on.
Only the operator reads the Secret with CA keys; replicas get the leaf, its key and the bundle.
"""

from __future__ import annotations

import base64
import datetime as dt
import enum
import ipaddress
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE = dt.timedelta(days=5 * 365)
LEAF_LIFE = dt.timedelta(days=90)
RENEW_AFTER = 2 / 3
"""Of a certificate's life; what is left is time to notice that renewing fails."""

SETTLE = dt.timedelta(minutes=5)
"""From publishing a CA until a leaf may be signed by it: every API server has the new bundle by then."""

CLOCK_SKEW = dt.timedelta(hours=1)
"""Certificates begin this long ago, for those whose clock is behind."""


class Mode(enum.StrEnum):
    """Who makes the certificates."""

    OPERATOR = "operator"
    """This module."""
    CERT_MANAGER = "certManager"
    """cert-manager writes the Secret and the bundle; nothing is done here."""
    PROVIDED = "provided"
    """Somebody writes the Secret; its `ca.crt` is the bundle."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, both PEM."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"Pair({fingerprint(self.certificate)[:16]})"


@dataclass(frozen=True, slots=True)
class Material:
    """All there is.

    Args:
        authority: signs leaves.
        leaf: what replicas show; None if that was lost.
        next: a CA that is published and does not sign yet.
        previous: certificate of the CA that signed before, still trusted.
    """

    authority: Pair
    leaf: Pair | None
    next: Pair | None = None
    previous: bytes | None = None

    @property
    def bundle(self) -> bytes:
        """What the API server is to trust."""
        more = (self.next.certificate if self.next else b"", self.previous or b"")
        return b"".join((self.authority.certificate, *more))


@dataclass(frozen=True, slots=True)
class Seen:
    """What others show of it.

    Args:
        trusted: the bundle in the webhook's configuration.
        served: SHA-256 of the leaf that each replica shows, in hex; None: not every one could be asked.
    """

    trusted: bytes
    served: Collection[str] | None


# --- making ----------------------------------------------------------------------------------------------


def make_authority(name: str, now: dt.datetime) -> Pair:
    """Make a CA, with a key of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(_name(name), _name(name), key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def issue_leaf(authority: Pair, hosts: Sequence[str], now: dt.datetime) -> Pair:
    """Make a server's certificate for *hosts*, names or IP addresses, with a key of its own."""
    issuer, signing = _load(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    certificate = (
        _builder(_name(hosts[0]), issuer.subject, key.public_key(), now, LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(names, critical=False)
        .add_extension(usages, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False
        )
        .sign(signing, hashes.SHA256())
    )
    return _pair(certificate, key)


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a PEM certificate, in hex."""
    return x509.load_pem_x509_certificate(certificate).fingerprint(hashes.SHA256()).hex()


# --- deciding --------------------------------------------------------------------------------------------


def decide(
    material: Material | None, seen: Seen, *, name: str, hosts: Sequence[str], now: dt.datetime
) -> Material:
    """Return what there should be now: *material* itself if all is well.

    One step at a time; what it returns is written, published and seen before the next.

    Args:
        material: None if there is no CA, or none that can be used.
        name: of a CA that is made.
        hosts: what replicas are called.
    """
    if material is None:
        authority = make_authority(name, now)
        return Material(authority, issue_leaf(authority, hosts, now))
    if material.leaf is None or _is_old(material.leaf, now) or not _fits(material, material.leaf, hosts):
        return replace(material, leaf=issue_leaf(material.authority, hosts, now))
    if material.previous is not None and seen.served == {fingerprint(material.leaf.certificate)}:
        return replace(material, previous=None)
    if material.next is not None and _is_settled(material.next, seen.trusted, now):
        leaf = issue_leaf(material.next, hosts, now)
        return Material(material.next, leaf, previous=material.authority.certificate)
    if material.next is None and material.previous is None and _is_old(material.authority, now):
        return replace(material, next=make_authority(name, now))
    return material


def _is_settled(authority: Pair, trusted: bytes, now: dt.datetime) -> bool:
    begun = _begun(x509.load_pem_x509_certificate(authority.certificate))
    return now - begun >= SETTLE and fingerprint(authority.certificate) in _fingerprints(trusted)


def _is_old(pair: Pair, now: dt.datetime) -> bool:
    certificate = x509.load_pem_x509_certificate(pair.certificate)
    begun = _begun(certificate)
    return now - begun >= (certificate.not_valid_after_utc - begun) * RENEW_AFTER


def _fits(material: Material, pair: Pair, hosts: Sequence[str]) -> bool:
    """Whether the leaf is for *hosts*, and of the CA that signs."""
    leaf = x509.load_pem_x509_certificate(pair.certificate)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    try:
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(material.authority.certificate))
    except (InvalidSignature, ValueError):
        return False
    return set(names) == {_general_name(host) for host in hosts}


def _fingerprints(bundle: bytes) -> set[str]:
    if not bundle.strip():
        return set()
    return {each.fingerprint(hashes.SHA256()).hex() for each in x509.load_pem_x509_certificates(bundle)}


# --- Secrets ---------------------------------------------------------------------------------------------

# The CA's: ca.crt, ca.key; during a rotation next.crt and next.key, or previous.crt. The operator's alone.
# The leaf's: tls.crt, tls.key and ca.crt, the bundle; mounted by the replicas.


def authority_data(material: Material) -> dict[str, str]:
    """Return the `data` of the Secret with the CA."""
    data = {"ca.crt": material.authority.certificate, "ca.key": material.authority.key}
    if material.next is not None:
        data |= {"next.crt": material.next.certificate, "next.key": material.next.key}
    if material.previous is not None:
        data["previous.crt"] = material.previous
    return _encoded(data)


def leaf_data(material: Material) -> dict[str, str]:
    """Return the `data` of the Secret with the leaf.

    Raises:
        ValueError: there is no leaf.
    """
    if material.leaf is None:
        raise ValueError("no leaf to write")
    return _encoded(
        {"tls.crt": material.leaf.certificate, "tls.key": material.leaf.key, "ca.crt": material.bundle}
    )


def read_material(authority: Mapping[str, str], leaf: Mapping[str, str]) -> Material | None:
    """Read the `data` of both Secrets; empty where one is missing.

    Returns: None if there is no usable CA: all is made anew then, and replicas are distrusted until they
        show it. A lost leaf alone costs nothing.
    """
    signing = _read_pair(authority, "ca")
    if signing is None:
        return None
    return Material(
        signing,
        _read_pair(leaf, "tls"),
        _read_pair(authority, "next"),
        _read_certificate(authority, "previous"),
    )


def _read_pair(data: Mapping[str, str], name: str) -> Pair | None:
    try:
        pair = Pair(_decoded(data, f"{name}.crt"), _decoded(data, f"{name}.key"))
        _load(pair)
    except (KeyError, ValueError):
        return None
    return pair


def _read_certificate(data: Mapping[str, str], name: str) -> bytes | None:
    try:
        certificate = _decoded(data, f"{name}.crt")
        x509.load_pem_x509_certificate(certificate)
    except (KeyError, ValueError):
        return None
    return certificate


def _encoded(data: Mapping[str, bytes]) -> dict[str, str]:
    return {name: base64.b64encode(value).decode() for name, value in data.items()}


def _decoded(data: Mapping[str, str], name: str) -> bytes:
    return base64.b64decode(data[name], validate=True)


# --- X.509 -----------------------------------------------------------------------------------------------


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    life: dt.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + life)
    )


def _begun(certificate: x509.Certificate) -> dt.datetime:
    """When a certificate of ours was made."""
    return certificate.not_valid_before_utc + CLOCK_SKEW


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Pair(certificate.public_bytes(encoding), private)


def _load(pair: Pair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Raises ValueError if the two do not belong together."""
    certificate = x509.load_pem_x509_certificate(pair.certificate)
    key = serialization.load_pem_private_key(pair.key, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError("the key is not the certificate's")
    return certificate, key
