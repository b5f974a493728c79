"""How kopf is set up in our process, and that it logs in as we do."""

from __future__ import annotations

import kopf
from tests.operator.fake_api import Answer, FakeApi, FakeLogin

from openhqm_operator.api import names
from openhqm_operator.noticing.handlers import _Endlessly, _session, set_up


def test_its_finalizer_is_neither_ours_nor_that_of_other_operators() -> None:
    settings = kopf.OperatorSettings()
    default = settings.persistence.finalizer

    set_up(settings)

    assert settings.persistence.finalizer not in (names.FINALIZER, default)
    assert settings.persistence.finalizer.startswith(f"{names.GROUP}/")


def test_it_posts_no_events_and_watches_no_definitions() -> None:
    settings = kopf.OperatorSettings()

    set_up(settings)

    assert not settings.posting.enabled
    assert settings.scanning.disabled


def test_it_never_gives_up() -> None:
    delays = iter(_Endlessly())

    assert max(next(delays) for _ in range(1000)) == 8.0


async def test_the_token_is_asked_for_at_each_call_and_its_refusal_told(api: FakeApi) -> None:
    login = FakeLogin(api.server)
    api.answers += [Answer(status=401), Answer({"kind": "APIVersions"})]

    async with _session(login, login.authorization) as session:
        refused = await session.get(f"{api.server}/api")
        await refused.read()
        async with session.get(f"{api.server}/api") as answer:
            assert answer.status == 200

    assert [one.headers["Authorization"] for one in api.requests] == ["Bearer token-0", "Bearer token-1"]
