"""The checker finds every violation planted for it, and none in a clean run."""

from __future__ import annotations

import pytest
from tests.integration.checker import Outcome, Sent, check


def sent(uuid: str = "u1", method: str = "POST", handle: str | None = "h") -> Sent:
    return Sent(uuid=uuid, method=method, secret=f"secret-{uuid}", handle=handle)


def answered(uuid: str = "u1", reads: int = 2) -> Outcome:
    return Outcome("done", ((201, f"{uuid} secret-{uuid}".encode()),) * reads)


RUN_ONCE = ["start u1", "end u1"]


def test_clean_run_has_no_violation() -> None:
    verdict = check([sent(), sent("u2", handle=None)], {"u1": answered()}, RUN_ONCE)

    assert (verdict.accepted, verdict.answered) == (1, 1)
    assert verdict.lost == verdict.mixed == verdict.altered == verdict.invented == []
    assert verdict.unanswered_runs == []
    assert verdict.repeated_safe == verdict.repeated_unsafe == 0


@pytest.mark.parametrize(
    ("outcomes", "journal", "violation"),
    [
        pytest.param({}, RUN_ONCE, "lost", id="handle unreadable"),
        pytest.param({"u1": Outcome("queued")}, [], "lost", id="never finished"),
        pytest.param({"u1": Outcome("expired")}, [], "lost", id="expired without a deadline"),
        pytest.param({"u1": Outcome("cancelled")}, [], "lost", id="cancelled by nobody"),
        pytest.param({"u1": Outcome("done")}, RUN_ONCE, "lost", id="done without an answer"),
        pytest.param({"u1": answered("u2")}, RUN_ONCE, "mixed", id="someone else's answer"),
        pytest.param(
            {"u1": Outcome("done", ((500, b"u1 secret-u1"),))}, RUN_ONCE, "mixed", id="other status"
        ),
        pytest.param({"u1": Outcome("done", ((201, b"u1 secret"),))}, RUN_ONCE, "mixed", id="truncated"),
        pytest.param(
            {"u1": Outcome("done", ((201, b"u1 secret-u1"), (201, b"other")))},
            RUN_ONCE,
            "altered",
            id="changed between reads",
        ),
        pytest.param({"u1": answered()}, [*RUN_ONCE, "start u9"], "invented", id="nobody sent it"),
        pytest.param({"u1": answered()}, ["start u1"], "unanswered_runs", id="answer without a finished run"),
        pytest.param({"u1": answered()}, [], "unanswered_runs", id="answer without a run"),
    ],
)
def test_planted_violation_is_found(outcomes: dict, journal: list[str], violation: str) -> None:
    verdict = check([sent()], outcomes, journal)

    assert getattr(verdict, violation)


def test_repeats_are_counted_by_safety_of_the_method() -> None:
    journal = ["start u1", "start u1", "end u1", "start u2", "start u2", "start u2", "end u2"]

    verdict = check(
        [sent("u1", "POST"), sent("u2", "PUT")], {"u1": answered(), "u2": answered("u2")}, journal
    )

    assert (verdict.repeated_unsafe, verdict.repeated_safe) == (1, 2)


def test_repeats_of_requests_without_a_202_count_too() -> None:
    verdict = check([sent(handle=None)], {}, ["start u1", "start u1"])

    assert verdict.repeated_unsafe == 1


def test_outcome_unknown_is_a_dead_letter_not_a_loss() -> None:
    verdict = check([sent()], {"u1": Outcome("failed", reason="outcome-unknown")}, ["start u1"])

    assert (verdict.dead, verdict.unknown, verdict.lost) == (1, 1, [])
