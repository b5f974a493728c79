"""What a user lives through, on a real node: install, annotate, queue, scale, eject.

One cluster for the module; the tests are the chapters of one story and run in order.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

import pytest
from tests.cluster.story import NAMESPACE, RELEASE, SYSTEM, Load, Story, digest, opened
from tests.cluster.toolbox import Toolbox, ToolsMissing
from tests.services import missing


@pytest.fixture(scope="module")
def story(toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    try:
        with opened(toolbox, tmp_path_factory.mktemp("story")) as story:
            yield story
    except ToolsMissing as exc:
        missing(str(exc))


def test_helm_install_is_enough(story: Story) -> None:
    story.install()

    pods = json.loads(story.cluster.kubectl("-n", SYSTEM, "get", "pods", "-o", "json"))["items"]
    assert len(pods) == 5, story.report()  # two operators, two injectors, one Redis


def test_the_app_runs_without_us_at_first(story: Story) -> None:
    story.start_app()

    status, headers, _ = story.call("POST", "/orders", b"direct")

    assert (status, headers["X-Legacy"]) == (201, "yes")
    story.before = story.get("deployment", "legacy")["spec"]


def test_one_annotation_puts_a_queue_in_front(story: Story) -> None:
    seconds, location = story.enable(b"queued")

    print(f"annotate to first 202: {seconds:.1f} s")
    answered, app_headers, body = story.answer_of(location)
    assert (answered, app_headers["X-Legacy"]) == (201, "yes")
    assert json.loads(body) == {
        "path": "/orders?wait=0.1",
        "sha256": digest(b"queued"),
        "size": 6,
    }
    story.wait("Ready", lambda: story.condition("Ready") == "True")


def test_reading_passes_straight_through(story: Story) -> None:
    status, headers, body = story.call("GET", "/count")

    assert (status, headers["X-Legacy"]) == (200, "yes")
    assert json.loads(body)["ran"] >= 1


def test_a_rollout_under_load_fails_and_loses_nothing(story: Story) -> None:
    with Load(story, "rollout") as load:
        story.cluster.kubectl("-n", NAMESPACE, "rollout", "restart", "deployment", "legacy")
        story.wait("the rollout", story.is_rolled_out)

    restarted = "kubectl.kubernetes.io/restartedAt"  # the user's own change, which stays
    template = story.get("deployment", "legacy")["spec"]["template"]["metadata"]
    story.before["template"]["metadata"]["annotations"] = {restarted: template["annotations"][restarted]}
    assert load.failures == []
    assert len(load.handles) > 50
    load.check_runs()


def test_a_pod_that_is_killed_at_work_leaves_no_request_without_an_end(story: Story) -> None:
    with Load(story, "killed") as load:
        story.wait("work", lambda: len(load.handles) > 50)
        [pod] = story.pods()
        story.cluster.kubectl(
            *("-n", NAMESPACE, "delete", "pod", pod["metadata"]["name"], "--force", "--grace-period=0")
        )
        story.wait("a new Pod", lambda: story.is_rolled_out() and story.is_reachable())

    # Connections fail while there is no Pod: that is the user's one replica, not the queue.
    load.check_runs(at_most_unknown=8)


def test_a_store_that_is_away_stops_queueing_alone(story: Story) -> None:
    """The Pod stays in the Service, reading works, and what was accepted before is answered after."""
    body = b"before the store was away"
    _, headers, _ = story.call("POST", "/orders?wait=0.1", body)
    [server] = story.cluster.run("pgrep", "-x", "redis-server").split()
    story.cluster.run("kill", "-STOP", server)
    try:
        status, refusal, _ = story.call("POST", "/orders", b"meanwhile")
        reading, _, _ = story.call("GET", "/count")
        time.sleep(10)  # ten readiness probes of the app and two of the sidecar
        [pod] = story.pods()
    finally:
        story.cluster.run("kill", "-CONT", server)

    assert (status, reading) == (503, 200)
    assert int(refusal["Retry-After"]) > 0
    assert all(one["ready"] for one in pod["status"]["containerStatuses"]), story.report()
    answered, _, answer = story.answer_of(headers["Location"])
    assert (answered, json.loads(answer)["sha256"]) == (201, digest(body))
    story.wait("queueing", lambda: story.call("POST", "/orders", b"after")[0] == 202)


def test_an_app_restarted_by_its_liveness_probe_loses_nothing(story: Story) -> None:
    """The app's process ends under load, again and again, as if killed by its probe."""
    with Load(story, "restarted") as load:
        for _ in range(2):
            runs = len(load.handles)
            story.wait("work", lambda runs=runs: len(load.handles) > runs + 30)
            ending = "import os, signal; os.kill(1, signal.SIGTERM)"
            story.cluster.kubectl(
                *("-n", NAMESPACE, "exec", "deploy/legacy", "-c", "app", "--", "python3", "-c", ending),
                check=False,  # the command ends with the container
            )
            story.wait("a new process", lambda: story.is_rolled_out() and story.is_reachable())

    # Each time: eight at work, and as many whose connections the kernel took for a process that was ending.
    load.check_runs(at_most_unknown=32)


def test_a_burst_makes_it_grow_and_its_end_makes_it_shrink(story: Story) -> None:
    story.annotate("openhqm.io/max-replicas=5", "openhqm.io/concurrency=2")
    story.wait("scaling", lambda: story.condition("AutoscalingActive") == "True")

    handles = [story.call("POST", "/orders?wait=1", b"%d" % number)[1]["Location"] for number in range(150)]

    story.wait("more replicas", lambda: story.get("deployment", "legacy")["spec"]["replicas"] > 1)
    answers = [story.answer_of(handle, 120) for handle in handles]
    assert {status for status, _, _ in answers} == {201}
    wanted = [digest(b"%d" % number) for number in range(150)]
    assert [json.loads(body)["sha256"] for _, _, body in answers] == wanted
    assert sorted(run for run in story.runs() if run in set(wanted)) == sorted(wanted), "each ran once"
    story.wait("one replica", lambda: story.get("deployment", "legacy")["spec"]["replicas"] == 1, 180)


def test_it_sleeps_at_zero_and_a_request_wakes_it(story: Story) -> None:
    """The Service answers at every moment: POSTs are queued, what is read is held until the app is there."""
    story.fall_asleep()

    started = time.monotonic()
    status, headers, _ = story.call("POST", "/orders", b"wake up")
    assert status == 202, story.report()
    reading, app_headers, _ = story.call("GET", "/count")
    answered, _, answer = story.answer_of(headers["Location"])

    print(f"wake from zero to the first answer: {time.monotonic() - started:.1f} s")
    assert (reading, app_headers["X-Legacy"]) == (200, "yes")
    assert (answered, json.loads(answer)["sha256"]) == (201, digest(b"wake up"))
    story.wait("one replica", lambda: len(story.pods()) == 1 and story.is_rolled_out())


def test_without_the_annotation_all_is_as_before(story: Story) -> None:
    bodies = [b"last %d" % number for number in range(40)]
    statuses = [story.call("POST", "/orders?wait=0.3", body)[0] for body in bodies]
    names = ("enabled", "max-replicas", "min-replicas", "idle-after", "concurrency")
    story.annotate(*(f"openhqm.io/{name}-" for name in names))

    story.wait("ejection", lambda: not story.is_injected() and story.is_rolled_out(), 120)

    assert set(statuses) == {202}
    assert {digest(body) for body in bodies} <= set(story.runs()), "the backlog was to be worked off first"
    assert story.get("deployment", "legacy")["spec"] == story.before
    # It goes behind its gateway, which may have work of its own to finish.
    story.wait("its end", lambda: not story.cluster.kubectl("-n", NAMESPACE, "get", "axp", "-o", "name"), 30)
    status, headers, _ = story.call("POST", "/orders", b"direct again")
    assert (status, headers["X-Legacy"]) == (201, "yes")


def test_uninstalling_leaves_nothing_behind(story: Story) -> None:
    cluster = story.cluster
    arguments = ("uninstall", str(cluster.kubeconfig), RELEASE, SYSTEM)

    cluster.run(sys.executable, "-m", "tests.cluster.helm", *arguments)

    assert "openhqm" not in cluster.kubectl("get", "mutatingwebhookconfigurations", "-o", "name")
    assert story.get("deployment", "legacy")["spec"] == story.before
