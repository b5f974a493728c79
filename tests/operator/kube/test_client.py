"""The client against a server that misbehaves; that its requests are right is shown in tests/cluster."""

from __future__ import annotations

import pytest
from tests.operator.fake_api import HANGS, Answer, FakeApi, status

from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import (
    AlreadyExists,
    Conflict,
    FieldsTaken,
    Forbidden,
    Gone,
    Invalid,
    KubeError,
    NotFound,
    Unauthorized,
    Unavailable,
)
from openhqm_operator.kube.resources import CONFIG_MAPS, DEPLOYMENTS
from openhqm_operator.kube.transport import Timeouts

KEY = ("shop", "legacy")
CONFIG_MAP = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"namespace": "shop", "name": "legacy"},
    "data": {"a": "1"},
}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (status(400, "BadRequest", "no"), Invalid),
        (status(422, "Invalid", "no"), Invalid),
        (status(403, "Forbidden", "no"), Forbidden),
        (status(404, "NotFound", "no"), NotFound),
        (Answer(b"404 page not found\n", 404), NotFound),
        (status(409, "Conflict", "no"), Conflict),
        (status(409, "AlreadyExists", "no"), AlreadyExists),
        (status(409, "Conflict", "no", causes=[{"reason": "FieldManagerConflict"}]), FieldsTaken),
        (status(410, "Expired", "no"), Gone),
        (status(504, "Timeout", "no", causes=[{"reason": "ResourceVersionTooLarge"}]), Gone),
        (status(429, "TooManyRequests", "no"), Unavailable),
        (status(500, "InternalError", "no"), Unavailable),
        (Answer(b"<html>bad gateway</html>", 502), Unavailable),
        (status(503, "ServiceUnavailable", "no"), Unavailable),
    ],
)
async def test_each_refusal_has_its_error(
    api: FakeApi, kube: Kube, answer: Answer, expected: type[KubeError]
) -> None:
    api.answers.append(answer)

    with pytest.raises(KubeError) as caught:
        await kube.get(CONFIG_MAPS, KEY)

    assert type(caught.value) is expected
    assert caught.value.status == answer.status
    assert "GET /api/v1/namespaces/shop/configmaps/legacy" in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (Answer({"code": 429}, 429, {"Retry-After": "7"}), 7.0),
        (Answer({"code": 429}, 429, {"Retry-After": "soon"}), 0.0),
        (status(503, "ServiceUnavailable", "", retryAfterSeconds=3), 3.0),
    ],
)
async def test_it_says_how_long_the_server_asked_to_wait(
    api: FakeApi, kube: Kube, answer: Answer, seconds: float
) -> None:
    api.answers.append(answer)

    with pytest.raises(Unavailable) as caught:
        await kube.get(CONFIG_MAPS, KEY)

    assert caught.value.retry_after == seconds


async def test_fields_taken_names_their_owners(api: FakeApi, kube: Kube) -> None:
    cause = {"reason": "FieldManagerConflict", "field": ".spec.replicas", "message": 'conflict with "hpa"'}
    api.answers.append(status(409, "Conflict", "no", causes=[cause]))

    with pytest.raises(FieldsTaken) as caught:
        await kube.apply(CONFIG_MAP, manager="us", force=False)

    assert caught.value.owners == {".spec.replicas": 'conflict with "hpa"'}


async def test_a_call_without_answer_ends_in_time(api: FakeApi) -> None:
    api.answers.append(Answer(HANGS))

    async with api.client(Timeouts(call=0.05)) as kube:
        with pytest.raises(Unavailable, match="no answer"):
            await kube.get(CONFIG_MAPS, KEY)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(b"<html>please log in</html>"), Unavailable),
        (Answer({"hello": "world"}), Unavailable),
        (Answer(b"", 302, {"Location": "https://elsewhere"}), Invalid),
    ],
)
async def test_what_is_not_an_api_server_is_not_believed(
    api: FakeApi, kube: Kube, answer: Answer, expected: type[KubeError]
) -> None:
    api.answers.append(answer)

    with pytest.raises(expected):
        await kube.get(CONFIG_MAPS, KEY)


async def test_a_server_that_is_not_there_is_unavailable(api: FakeApi, kube: Kube) -> None:
    await api.stop()

    with pytest.raises(Unavailable):
        await kube.get(CONFIG_MAPS, KEY)

    await api.start()


async def test_a_refused_token_is_replaced_once(api: FakeApi, kube: Kube) -> None:
    api.answers += [status(401, "Unauthorized", "no"), Answer(CONFIG_MAP)]

    await kube.get(CONFIG_MAPS, KEY)

    assert [r.headers["Authorization"] for r in api.requests] == ["Bearer token-0", "Bearer token-1"]


async def test_a_token_that_stays_refused_is_an_error(api: FakeApi, kube: Kube) -> None:
    api.answers += [status(401, "Unauthorized", "no")] * 2

    with pytest.raises(Unauthorized):
        await kube.get(CONFIG_MAPS, KEY)

    assert len(api.requests) == 2


async def test_an_apply_names_its_manager_and_whether_it_forces(api: FakeApi, kube: Kube) -> None:
    api.answers += [Answer(CONFIG_MAP), Answer(CONFIG_MAP)]

    await kube.apply(CONFIG_MAP, manager="us", force=True)
    await kube.apply_status(CONFIG_MAP, manager="them", force=False, dry_run=True)

    first, second = api.requests
    assert (first.method, first.path) == ("PATCH", "/api/v1/namespaces/shop/configmaps/legacy")
    assert first.query == {"fieldManager": "us", "force": "true"}
    assert first.headers["Content-Type"] == "application/apply-patch+yaml"
    assert first.body == CONFIG_MAP
    assert second.path.endswith("/legacy/status")
    assert second.query == {"fieldManager": "them", "force": "false", "dryRun": "All"}


async def test_a_list_is_read_page_by_page_and_its_items_say_what_they_are(api: FakeApi, kube: Kube) -> None:
    api.page = 2
    for name in "abcde":
        api.put(name)

    listing = await kube.list(CONFIG_MAPS, labels="x=y", project=lambda o: (o["kind"], o["metadata"]["name"]))

    assert listing.items == [("ConfigMap", name) for name in "abcde"]
    assert listing.resource_version == "105"
    assert [r.query.get("continue") for r in api.requests] == [None, "2", "4"]
    assert {r.query["labelSelector"] for r in api.requests} == {"x=y"}


async def test_a_list_whose_pages_ran_out_is_read_whole(api: FakeApi, kube: Kube) -> None:
    api.put("a")
    api.answers += [
        Answer({"metadata": {"resourceVersion": "1", "continue": "x"}, "items": []}),
        status(410, "Expired", "the continue token is too old"),
    ]

    listing = await kube.list(CONFIG_MAPS)

    assert len(listing.items) == 1
    assert "limit" not in api.requests[-1].query


async def test_only_writes_that_happen_are_counted(api: FakeApi, kube: Kube) -> None:
    scale = {"metadata": {"resourceVersion": "7"}, "spec": {"replicas": 3}}
    api.answers += [Answer(CONFIG_MAP)] * 3 + [Answer(scale), status(409, "Conflict", "no")]

    await kube.get(CONFIG_MAPS, KEY)
    await kube.apply(CONFIG_MAP, manager="us", force=True)
    await kube.apply(CONFIG_MAP, manager="us", force=True, dry_run=True)
    await kube.apply_scale(DEPLOYMENTS, KEY, 3, resource_version="6", manager="us", force=True)
    with pytest.raises(Conflict):
        await kube.create(CONFIG_MAP, manager="us")

    assert kube.writes == {"apply configmaps": 1, "scale deployments.apps": 1, "create configmaps": 1}


async def test_a_fence_stops_writes_but_not_dry_runs(api: FakeApi) -> None:
    def fence() -> None:
        raise PermissionError("not the leader")

    api.answers.append(Answer(CONFIG_MAP))
    async with api.client(fence=fence) as kube:
        await kube.apply(CONFIG_MAP, manager="us", force=True, dry_run=True)
        with pytest.raises(PermissionError):
            await kube.delete(CONFIG_MAPS, KEY)

    assert len(api.requests) == 1


async def test_an_update_needs_the_version_it_was_decided_upon(kube: Kube) -> None:
    with pytest.raises(ValueError, match="resourceVersion"):
        await kube.update(CONFIG_MAP, manager="us")


async def test_deleting_what_is_not_there_is_no_error(kube: Kube) -> None:
    assert await kube.delete(CONFIG_MAPS, KEY) is False


async def test_a_watch_says_that_it_cannot_start(api: FakeApi, kube: Kube) -> None:
    api.answers.append(status(429, "TooManyRequests", "later", retryAfterSeconds=2))

    with pytest.raises(Unavailable) as caught:
        async with kube.watch(CONFIG_MAPS, resource_version="1"):
            pass

    assert caught.value.retry_after == 2


async def test_a_watch_leaves_no_connection_behind(api: FakeApi, kube: Kube) -> None:
    api.put("a")

    async with kube.watch(CONFIG_MAPS, resource_version="100") as events:
        event = await anext(events)

    assert (event.type, event.object["metadata"]["name"]) == ("ADDED", "a")
    session = kube._transport._session
    assert session is not None
    assert session.connector is not None
    assert not session.connector._acquired
