"""How slowly a body may come, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from tests.sidecar import virtual_time

from openhqm.body import MIN_BYTES_PER_SECOND, Limits, Patience
from openhqm.errors import BodyTimeout
from openhqm.settings import Settings
from openhqm.stores.memory import MemoryStore

TIMEOUT_SECONDS = 60.0


def seconds_read(pause_seconds: float, chunk_bytes: int, chunks: int, *, work_seconds: float = 0.0) -> float:
    """Read *chunks* that come after pauses, with *work_seconds* of our own after each; how long it took.

    Raises:
        BodyTimeout: its *args* end with the seconds until then.
    """

    async def read() -> bytes:
        await asyncio.sleep(pause_seconds)
        return bytes(chunk_bytes)

    async def scene() -> float:
        patience = Patience(TIMEOUT_SECONDS)
        try:
            for _ in range(chunks):
                await patience.next_chunk(read)
                await asyncio.sleep(work_seconds)
        except BodyTimeout as exc:
            exc.args += (asyncio.get_running_loop().time() - virtual_time.START,)
            raise
        return asyncio.get_running_loop().time() - virtual_time.START

    return float(virtual_time.run(scene()))


@pytest.mark.parametrize(
    ("pause_seconds", "chunk_bytes", "chunks"),
    [
        (1, MIN_BYTES_PER_SECOND, 10_000),
        (0.1, MIN_BYTES_PER_SECOND // 10, 10_000),
        (59, 16_384, 1000),
        (1, 1, 59),
        (0, 1, 10_000),
    ],
)
def test_a_body_may_pause_and_be_as_slow_as_a_modem(
    pause_seconds: float, chunk_bytes: int, chunks: int
) -> None:
    assert seconds_read(pause_seconds, chunk_bytes, chunks) == pytest.approx(pause_seconds * chunks)


@pytest.mark.parametrize(
    ("pause_seconds", "chunk_bytes", "given_up_after_seconds"),
    [
        (61, 1_000_000, 60),
        (1, 1, 60.25),
        (1, MIN_BYTES_PER_SECOND // 2, 119),
        (59, 1, 60.004),
    ],
)
def test_a_body_that_stays_slow_is_given_up(
    pause_seconds: float, chunk_bytes: int, given_up_after_seconds: float
) -> None:
    with pytest.raises(BodyTimeout, match=r"slower than 240 bytes/s for 60 s") as error:
        seconds_read(pause_seconds, chunk_bytes, 10_000)

    assert error.value.args[-1] == pytest.approx(given_up_after_seconds, abs=1)


def test_much_at_once_does_not_buy_time_for_later() -> None:
    async def scene() -> None:
        patience = Patience(TIMEOUT_SECONDS)

        async def much() -> bytes:
            return bytes(10_000_000)

        await patience.next_chunk(much)
        await patience.next_chunk(asyncio.Event().wait)  # type: ignore[arg-type]  # nothing, for ever

    with pytest.raises(BodyTimeout):
        virtual_time.run(scene())


def test_a_client_does_not_pay_for_our_own_slowness() -> None:
    assert seconds_read(0.01, MIN_BYTES_PER_SECOND, 100, work_seconds=100) == pytest.approx(10_001)


def test_nothing_above_the_limit_counts_as_small():
    """What came whole with its head is judged by `inline_bytes` alone."""
    settings = Settings.model_validate({"ingress": {"max_body_bytes": 9}})

    assert Limits.from_settings(settings, MemoryStore.abilities).inline_bytes == 9
