"""An informer follows its resource whatever the server does to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.operator.fake_api import HANGS, QUICK, Answer, FakeApi, status

from openhqm_operator.kube.backoff import Backoff
from openhqm_operator.kube.resources import CONFIG_MAPS, SCALED_OBJECTS, Key, Object, Resource
from openhqm_operator.kube.transport import Timeouts
from openhqm_operator.kube.watching import Informer

NO_WAIT = Backoff(base=0.01, limit=0.02)


class Follower:
    """An informer that runs, and what it told, in order."""

    def __init__(self, informer: Informer) -> None:
        self.informer = informer
        self.told: asyncio.Queue[tuple[str, Object | None, Object | None]] = asyncio.Queue()
        informer.on_change(lambda key, before, after: self.told.put_nowait((key.name, before, after)))

    @property
    def names(self) -> set[str]:
        return {key.name for key in self.informer.cache}

    async def next(self) -> tuple[str, Object | None, Object | None]:
        async with asyncio.timeout(5):
            return await self.told.get()

    async def next_names(self, count: int) -> list[str]:
        return [(await self.next())[0] for _ in range(count)]


@asynccontextmanager
async def following(
    api: FakeApi, resource: Resource = CONFIG_MAPS, timeouts: Timeouts = QUICK, **rest: Any
) -> AsyncIterator[Follower]:
    async with api.client(timeouts) as kube:
        follower = Follower(Informer(kube, resource, backoff=rest.pop("backoff", NO_WAIT), **rest))
        task = asyncio.create_task(follower.informer.run())
        try:
            async with asyncio.timeout(5):
                await follower.informer.synced.wait()
            yield follower
        finally:
            task.cancel()
            await asyncio.wait({task})
    assert task.cancelled()


async def test_it_tells_of_what_is_there_and_then_of_every_change(api: FakeApi) -> None:
    api.put("a", data="1")

    async with following(api) as follower:
        first = await follower.next()
        api.put("b")
        api.put("a", data="2")
        api.remove("b")
        rest = [await follower.next() for _ in range(3)]

    assert (first[0], first[1], first[2]["data"]) == ("a", None, "1")
    assert [name for name, _, _ in rest] == ["b", "a", "b"]
    assert (rest[1][1]["data"], rest[1][2]["data"]) == ("1", "2")
    assert rest[2][2] is None
    assert follower.names == {"a"}
    assert follower.informer.relists == 1


async def test_a_watch_that_ends_goes_on_from_the_last_event(api: FakeApi) -> None:
    async with following(api) as follower:
        await api.wait_for_watches(1)
        api.put("a")
        await follower.next()
        api.end_watches()
        await api.wait_for_watches(2)
        api.put("b")
        await follower.next()

    assert [r.query["resourceVersion"] for r in api.asked("watch")][:2] == ["100", "101"]
    assert follower.informer.relists == 1


async def test_bookmarks_move_the_place_to_continue_from(api: FakeApi) -> None:
    async with following(api) as follower:
        await api.wait_for_watches(1)
        api.put("a")
        api.bookmark()
        await follower.next()
        api.end_watches()
        await api.wait_for_watches(2)

    assert api.asked("watch")[1].query["resourceVersion"] == "111"
    assert all(r.query["allowWatchBookmarks"] == "true" for r in api.asked("watch"))


async def test_a_watch_gone_stale_is_made_good_by_a_list(api: FakeApi) -> None:
    """What changed and what went in between is told as if it had been watched; the unchanged is not told."""
    for name in ("changed", "same", "removed"):
        api.put(name)

    async with following(api) as follower:
        await follower.next_names(3)
        await api.wait_for_watches(1)
        api.is_silent = True
        api.put("changed", data="2")
        api.remove("removed")
        api.put("new")
        api.is_silent = False
        api.forget_history()
        told = await follower.next_names(3)

    assert sorted(told) == ["changed", "new", "removed"]
    assert follower.names == {"changed", "same", "new"}
    assert follower.informer.relists == 2


async def test_a_watch_that_falls_silent_is_given_up_and_nothing_is_missed(api: FakeApi) -> None:
    async with following(api, timeouts=Timeouts(watch_silence=0.2)) as follower:
        await api.wait_for_watches(1)
        api.put("heard")
        await follower.next()
        api.is_silent = True
        api.put("unheard")
        told = await follower.next_names(1)

    assert told == ["unheard"]
    assert follower.informer.relists == 1


async def test_a_quiet_watch_is_opened_anew_without_a_list_or_a_warning(
    api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    async with following(api, timeouts=Timeouts(watch_silence=0.05)) as follower:
        await api.wait_for_watches(4)
        api.put("heard")
        told = await follower.next_names(1)

    assert told == ["heard"]
    assert follower.informer.silences >= 3
    assert (follower.informer.relists, follower.informer.interruptions) == (1, 0)
    assert "warning" not in capsys.readouterr().out


async def test_a_server_restored_from_a_backup_is_listed_when_it_is_silent(api: FakeApi) -> None:
    """It has yet to reach the version asked for, so a watch from there would be silent for ever."""
    api.answers.append(Answer({"metadata": {"resourceVersion": "900"}, "items": []}))

    async with following(api, timeouts=Timeouts(watch_silence=0.1)) as follower:
        await api.wait_for_watches(1)
        api.end_watches()
        await api.wait_for_watches(2)
        api.put("restored")
        told = await follower.next_names(1)

    assert told == ["restored"]
    assert follower.informer.relists == 2


async def test_a_server_that_does_not_open_the_watch_anew_is_missed(api: FakeApi) -> None:
    """Silence itself does not count as a failure; what shows that the server is dead does."""
    now = 50.0

    async with following(api, timeouts=Timeouts(watch_silence=0.1, call=0.1), clock=lambda: now) as follower:
        await api.wait_for_watches(1)
        now = 80.0
        api.answers.extend([Answer(HANGS)] * 2)
        await api.wait_for_watches(4)

        assert follower.informer.interruptions == 2


async def test_a_connection_reset_in_the_middle_of_a_line_loses_nothing(api: FakeApi) -> None:
    async with following(api) as follower:
        await api.wait_for_watches(1)
        api.put("a")
        await follower.next()
        api.send_half_a_line_and_reset()
        await api.wait_for_watches(2)
        api.put("b")
        told = await follower.next_names(1)

    assert told == ["b"]
    assert api.asked("watch")[1].query["resourceVersion"] == "101"
    assert follower.informer.relists == 1


async def test_it_waits_as_long_as_the_server_asks(api: FakeApi) -> None:
    api.answers.append(status(429, "TooManyRequests", "later", retryAfterSeconds=1))
    loop = asyncio.get_running_loop()
    started = loop.time()

    async with following(api):
        took = loop.time() - started

    assert took >= 1
    assert len(api.asked("list")) == 2


async def test_a_server_that_was_away_is_followed_again(api: FakeApi) -> None:
    async with following(api) as follower:
        await api.wait_for_watches(1)
        await api.stop()
        api.put("meanwhile")
        heard = follower.informer.stale_seconds
        while follower.informer.interruptions < 3:
            await asyncio.sleep(0.01)
        assert heard() > 0
        await api.start()
        told = await follower.next_names(1)

    assert told == ["meanwhile"]
    assert follower.informer.relists == 1


async def test_watches_that_end_at_once_are_not_repeated_at_once(api: FakeApi) -> None:
    waits: list[float] = []

    class Noting(Backoff):
        def delay(self, failures: int, at_least: float = 0.0) -> float:
            waits.append(failures)
            return 0.0

    api.answers += [Answer({"metadata": {"resourceVersion": "5"}, "items": []})]
    api.answers += [Answer(b"")] * 3

    async with following(api, backoff=Noting()):
        await api.wait_for_watches(4)

    assert waits == [1, 2, 3]


async def test_changes_outside_of_what_is_kept_are_told_to_nobody(api: FakeApi) -> None:
    api.put("a", data="1", noise="1")

    async with following(api, project=lambda obj: {"data": obj["data"]}) as follower:
        await follower.next()
        await api.wait_for_watches(1)
        api.put("a", data="1", noise="2")
        api.put("a", data="2", noise="2")
        told = await follower.next()

    assert told == ("a", {"data": "1"}, {"data": "2"})
    assert follower.told.empty()


async def test_a_resource_that_need_not_exist_is_empty_and_in_step(api: FakeApi) -> None:
    api.answers.append(Answer(b"404 page not found\n", 404))

    async with following(api, SCALED_OBJECTS, optional=True) as follower:
        assert len(follower.informer.cache) == 0

    assert follower.informer.interruptions == 0


async def test_it_is_stale_from_when_the_server_was_last_heard(api: FakeApi) -> None:
    now = 50.0

    async with following(api, clock=lambda: now) as follower:
        await api.wait_for_watches(1)
        now = 80.0
        silent_for = follower.informer.stale_seconds()
        api.put("a")
        await follower.next()

        assert silent_for == 30
        assert follower.informer.stale_seconds(85.0) == 5


async def test_a_fault_in_a_callback_ends_the_informer(api: FakeApi) -> None:
    """Our own mistakes are not weather: the process must notice."""
    api.put("a")

    def fail(key: Key, before: Object | None, after: Object | None) -> None:
        raise LookupError(key)

    async with api.client() as kube:
        informer = Informer(kube, CONFIG_MAPS)
        informer.on_change(fail)
        with pytest.raises(LookupError):
            await informer.run()
