"""Ids and the handles that give access to their records."""

import uuid

import pytest

from openhqm.errors import UnknownHandle
from openhqm.handles import Handles, IdMint, id_text

OLD, NEW = b"old-key-0123456789", b"new-key-0123456789"


def test_ids_are_uuid7_unique_and_increasing_even_when_the_clock_stands_still_or_jumps_back():
    times = iter([1_700_000_000_000_000_000] * 5000 + [1_600_000_000_000_000_000] * 5000)
    mint = IdMint(clock_ns=lambda: next(times))

    ids = [mint() for _ in range(10_000)]

    assert ids == sorted(set(ids))
    assert {(uuid.UUID(bytes=id).version, uuid.UUID(bytes=id).variant) for id in ids} == {(7, uuid.RFC_4122)}


def test_an_id_tells_when_it_was_minted():
    id = IdMint(clock_ns=lambda: 1_700_000_000_123_000_000)()

    assert int.from_bytes(id[:6], "big") == 1_700_000_000_123


def test_an_id_is_shown_as_a_uuid():
    id = IdMint()()

    assert id_text(id) == str(uuid.UUID(bytes=id))


def test_a_handle_gives_access_to_its_id():
    handles = Handles([NEW])
    id = IdMint()()

    assert handles.verify(handles.handle(id)) == id


def test_handles_of_an_older_key_stay_valid_while_it_is_kept():
    id = IdMint()()
    old = Handles([OLD]).handle(id)

    assert Handles([NEW, OLD]).verify(old) == id
    assert Handles([NEW, OLD]).handle(id) == Handles([NEW]).handle(id) != old
    with pytest.raises(UnknownHandle):
        Handles([NEW]).verify(old)


def test_wrong_missing_and_malformed_handles_look_alike():
    handles = Handles([NEW])
    good = handles.handle(IdMint()())
    id, key_id, mac = good.split(".")
    bad = [
        "",
        id,
        f"{id}.{key_id}",
        f"{id}..{mac}",
        f"{id}.{key_id}.{mac[:-1]}",
        f"{id}.{key_id}.{mac}.",
        f"{id}.{key_id}.{'A' * 22}",
        f"{id}.00000000.{mac}",
        f"{id.upper()}.{key_id}.{mac}",
        f"{{{id}}}.{key_id}.{mac}",
        f"{id.replace('-', '')}.{key_id}.{mac}",
        f"{id_text(IdMint()())}.{key_id}.{mac}",
        Handles([OLD]).handle(uuid.UUID(id).bytes),
        "\udcff.\udcff.\udcff",
        good + "=",
    ]

    messages = set()
    for handle in bad:
        with pytest.raises(UnknownHandle) as caught:
            handles.verify(handle)
        messages.add(str(caught.value))

    assert len(messages) == 1
