from __future__ import annotations

from openhqm_operator.kube.cache import Cache
from openhqm_operator.kube.resources import Key, Object

A, B = Key("shop", "a"), Key("shop", "b")


def colours(obj: Object) -> list[str]:
    return obj.get("colours", [])


def test_it_finds_by_key_given_as_any_pair() -> None:
    cache = Cache()

    cache.put(A, {"n": 1})

    assert cache.get(("shop", "a")) == {"n": 1}
    assert cache.get(B) is None
    assert A in cache
    assert list(cache) == [A]
    assert len(cache) == 1


def test_an_index_follows_every_change() -> None:
    cache = Cache()
    cache.add_index("colour", colours)

    cache.put(A, {"colours": ["red", "blue"]})
    cache.put(B, {"colours": ["red"]})
    assert cache.by("colour", "red") == [{"colours": ["red", "blue"]}, {"colours": ["red"]}]

    cache.put(A, {"colours": ["blue"]})
    assert cache.by("colour", "red") == [{"colours": ["red"]}]

    cache.put(B, None)
    assert cache.by("colour", "red") == []


def test_an_index_added_later_knows_what_is_there() -> None:
    cache = Cache()
    cache.put(A, {"colours": ["red"]})

    cache.add_index("colour", colours)

    assert cache.by("colour", "red") == [{"colours": ["red"]}]


def test_an_index_gives_objects_in_the_order_of_their_keys() -> None:
    cache = Cache()
    cache.add_index("colour", colours)
    for key in (B, A, B):
        cache.put(key, {"name": key.name, "colours": ["red"]})

    assert [obj["name"] for obj in cache.by("colour", "red")] == ["a", "b"]


def test_it_returns_what_was_there_before() -> None:
    cache = Cache()

    assert cache.put(A, {"n": 1}) is None
    assert cache.put(A, {"n": 2}) == {"n": 1}
    assert cache.put(A, None) == {"n": 2}
    assert cache.put(A, None) is None
