"""Certificates that verify, and a rotation in which no API server ever distrusts a replica."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from openhqm_operator.certificates.rotation import (
    AUTHORITY_LIFE,
    LEAF_LIFE,
    SETTLE,
    Material,
    Pair,
    Seen,
    authority_data,
    decide,
    fingerprint,
    issue_leaf,
    leaf_data,
    make_authority,
    read_material,
)

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
HOSTS = ("openhqm-injector.openhqm.svc", "127.0.0.1")
DAY = dt.timedelta(days=1)
UNSEEN = Seen(b"", None)


def verifies(leaf: bytes, bundle: bytes, now: dt.datetime) -> bool:
    """Whether an API server that trusts *bundle* talks to a replica that shows *leaf*, by foreign code."""
    store = Store(x509.load_pem_x509_certificates(bundle))
    verifier = PolicyBuilder().store(store).time(now).build_server_verifier(x509.DNSName(HOSTS[0]))
    try:
        verifier.verify(x509.load_pem_x509_certificate(leaf), [])
    except x509.verification.VerificationError:
        return False
    return True


def step(material: Material | None, now: dt.datetime, seen: Seen = UNSEEN) -> Material:
    return decide(material, seen, name="openhqm-ca", hosts=HOSTS, now=now)


def published(material: Material) -> Seen:
    """Everybody has what there is."""
    return Seen(material.bundle, {fingerprint(material.leaf.certificate)})


@pytest.fixture(scope="module")
def fresh() -> Material:
    return step(None, NOW)


# --- making


def test_a_fresh_leaf_verifies(fresh: Material) -> None:
    assert verifies(fresh.leaf.certificate, fresh.bundle, NOW)
    assert not verifies(fresh.leaf.certificate, make_authority("other", NOW).certificate, NOW)
    assert not verifies(fresh.leaf.certificate, fresh.bundle, NOW + LEAF_LIFE + DAY)


async def test_a_tls_client_accepts_it_by_name_and_by_address(tmp_path: Path) -> None:
    material = step(None, dt.datetime.now(dt.UTC))
    (tmp_path / "tls.crt").write_bytes(material.leaf.certificate)
    (tmp_path / "tls.key").write_bytes(material.leaf.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    client = ssl.create_default_context(cadata=material.bundle.decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT

    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        for name in HOSTS:
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=name)
            writer.close()
            await writer.wait_closed()


def test_keys_are_not_shown(fresh: Material) -> None:
    assert "PRIVATE" not in repr(fresh)


# --- deciding


def test_nothing_is_done_while_all_is_well(fresh: Material) -> None:
    assert step(fresh, NOW + DAY, published(fresh)) is fresh


def test_a_leaf_is_renewed_after_two_thirds_of_its_life(fresh: Material) -> None:
    assert step(fresh, NOW + 59 * DAY, published(fresh)) is fresh

    renewed = step(fresh, NOW + 60 * DAY, published(fresh))

    assert renewed.authority == fresh.authority
    assert renewed.leaf != fresh.leaf
    assert verifies(renewed.leaf.certificate, fresh.bundle, NOW + 100 * DAY)


def test_other_hosts_get_another_leaf(fresh: Material) -> None:
    renewed = decide(fresh, UNSEEN, name="openhqm-ca", hosts=("other.svc",), now=NOW)

    assert renewed.leaf != fresh.leaf
    assert decide(renewed, UNSEEN, name="openhqm-ca", hosts=("other.svc",), now=NOW) is renewed


def test_a_leaf_of_a_stranger_is_replaced(fresh: Material) -> None:
    stranger = make_authority("openhqm-ca", NOW)
    wrong = replace(fresh, leaf=issue_leaf(stranger, HOSTS, NOW))

    assert verifies(step(wrong, NOW).leaf.certificate, fresh.bundle, NOW)


def test_a_ca_is_replaced_in_three_steps(fresh: Material) -> None:
    late = NOW + AUTHORITY_LIFE * 2 / 3
    material = step(replace(fresh, leaf=issue_leaf(fresh.authority, HOSTS, late)), late)

    assert material.next is not None
    assert material.authority == fresh.authority
    assert step(material, late + 2 * SETTLE, published(fresh)) is material  # nobody was told yet
    assert step(material, late + SETTLE / 2, published(material)) is material  # not everybody can know

    signed = step(material, late + SETTLE, published(material))
    assert (signed.authority, signed.next, signed.previous) == (
        material.next,
        None,
        fresh.authority.certificate,
    )
    assert step(signed, late + 2 * SETTLE, Seen(signed.bundle, None)) is signed  # a replica cannot be asked
    some_old = {fingerprint(signed.leaf.certificate), fingerprint(material.leaf.certificate)}
    assert step(signed, late + 2 * SETTLE, Seen(signed.bundle, some_old)) is signed

    done = step(signed, late + 2 * SETTLE, published(signed))
    assert (done.authority, done.previous) == (signed.authority, None)
    assert step(done, late + 2 * SETTLE, published(done)) is done


def test_a_leaf_is_renewed_while_a_rotation_is_stuck(fresh: Material) -> None:
    late = NOW + AUTHORITY_LIFE * 2 / 3
    stuck = step(replace(fresh, leaf=issue_leaf(fresh.authority, HOSTS, late)), late)

    renewed = step(stuck, late + 61 * DAY, UNSEEN)

    assert (renewed.next, renewed.authority) == (stuck.next, stuck.authority)
    assert verifies(renewed.leaf.certificate, fresh.bundle, late + 62 * DAY)


@pytest.mark.parametrize("seed", range(2))
def test_no_api_server_ever_distrusts_a_replica(seed: int) -> None:
    """Twelve years; replicas take minutes, API servers seconds, to follow; the leader sleeps up to weeks."""
    chance = random.Random(seed)
    now, material = NOW, step(None, NOW)
    replicas = [material.leaf.certificate] * 3
    servers = [material.bundle] * 3
    trusted, authorities = material.bundle, set()
    while now < NOW + dt.timedelta(days=12 * 365):
        now += dt.timedelta(minutes=6) if chance.random() < 0.5 else dt.timedelta(days=chance.uniform(1, 20))
        # API servers follow the webhook's configuration at once, replicas their mounted Secret one by one.
        servers = [trusted] * 3
        replicas = [material.leaf.certificate if chance.random() < 0.7 else shown for shown in replicas]
        for shown in replicas:
            if now < x509.load_pem_x509_certificate(shown).not_valid_after_utc:
                assert all(verifies(shown, bundle, now) for bundle in servers)
        before = material
        material = step(material, now, Seen(trusted, {fingerprint(shown) for shown in replicas}))
        authorities.add(fingerprint(material.authority.certificate))
        # Between writing the Secret and the configuration, both the old and the new bundle are in use.
        for shown in (*replicas, material.leaf.certificate):
            if now < x509.load_pem_x509_certificate(shown).not_valid_after_utc:
                assert verifies(shown, trusted, now)
                assert verifies(shown, material.bundle, now)
        assert before is material or before != material
        trusted = material.bundle

    assert len(authorities) >= 3


# --- Secrets


def test_what_is_written_is_read(fresh: Material) -> None:
    late = NOW + AUTHORITY_LIFE * 2 / 3
    published_ = step(replace(fresh, leaf=issue_leaf(fresh.authority, HOSTS, late)), late)
    signed = step(published_, late + SETTLE, published(published_))

    for material in (fresh, published_, signed):
        assert read_material(authority_data(material), leaf_data(material)) == material


def test_replicas_get_no_ca_key(fresh: Material) -> None:
    assert set(leaf_data(fresh)) == {"tls.crt", "tls.key", "ca.crt"}
    assert leaf_data(fresh)["tls.key"] != authority_data(fresh)["ca.key"]


def test_what_cannot_be_used_counts_as_missing(fresh: Material) -> None:
    authority, leaf = authority_data(fresh), leaf_data(fresh)
    other = make_authority("other", NOW)
    mixed = authority_data(replace(fresh, authority=Pair(fresh.authority.certificate, other.key)))

    assert read_material({}, leaf) is None
    assert read_material({**authority, "ca.key": "%%%"}, leaf) is None
    assert read_material({"ca.crt": authority["ca.crt"]}, leaf) is None
    assert read_material(mixed, leaf) is None


def test_a_lost_leaf_is_issued_by_the_same_ca(fresh: Material) -> None:
    found = read_material(authority_data(fresh), {})

    renewed = step(found, NOW + DAY)

    assert renewed.authority == fresh.authority
    assert verifies(renewed.leaf.certificate, fresh.bundle, NOW + DAY)
