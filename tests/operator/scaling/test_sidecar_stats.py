"""Reading /stats of many Pods: who does not answer, or with nonsense, is left out."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.operator.loads import stats_body

from openhqm_operator.scaling.sidecar_stats import MOST_BYTES, SidecarStats, address_of


def pod(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": {}}


async def test_those_that_answer_are_read_and_the_others_counted() -> None:
    async def answer(request: web.Request) -> web.Response:
        match request.match_info["pod"]:
            case "good":
                return web.json_response(stats_body(accepted=7))
            case "huge":
                return web.Response(body=b" " * (MOST_BYTES + 1))
            case "away":
                return web.json_response({"error": "store away"}, status=503)
            case "elsewhere":
                raise web.HTTPFound("/good/stats")
        return web.Response(text="<html>")

    app = web.Application()
    app.router.add_get("/{pod}/stats", answer)
    async with TestServer(app) as server:
        addresses = {
            name: str(server.make_url(f"/{name}")) for name in ("good", "huge", "away", "html", "elsewhere")
        }
        addresses["gone"] = "http://127.0.0.1:1"
        async with SidecarStats(lambda one: addresses.get(one["metadata"]["name"])) as stats:
            read = await stats.read([*map(pod, addresses), pod("no-address-yet")])

    assert {name: figures.requests.accepted for name, figures in read.items()} == {"good": 7}
    assert sum(stats.failures.values()) == 5


@pytest.mark.parametrize(
    ("status", "url"),
    [
        ({"podIP": "10.1.2.3"}, "http://10.1.2.3:16020"),
        ({"podIP": "fd00::7"}, "http://[fd00::7]:16020"),
        ({}, None),
    ],
)
def test_the_health_port_of_a_pod(status: dict[str, str], url: str | None) -> None:
    assert address_of({"metadata": {"name": "a"}, "status": status}) == url
