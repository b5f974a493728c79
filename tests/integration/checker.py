"""Judges a finished run: what clients were told, what the app ran, what came out at the end.

Pure: takes histories, returns a `Verdict` with counts; the tests assert on the counts. The checker
is itself tested with planted violations (`test_checker.py`), so that "0 lost" means something.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sent:
    """One request as its client saw it. *handle* is None when no 202 came back."""

    uuid: str
    method: str
    secret: str
    handle: str | None


@dataclass(frozen=True)
class Outcome:
    """What reading a handle gave in the end: the state, and every answer read, oldest first."""

    state: str
    answers: tuple[tuple[int, bytes], ...] = ()
    reason: str = ""


@dataclass
class Verdict:
    """Counts; *lost*, *mixed*, *altered* and *invented* must be 0 in every run.

    Args:
        lost: accepted, yet neither answered nor a dead letter in the end.
        mixed: answered with another caller's secret.
        altered: an answer that differed when read again.
        invented: run by the app though no client sent it.
        repeated_unsafe: POST or PATCH the app started more than once.
        unanswered_runs: done although the app never finished them.
    """

    accepted: int = 0
    answered: int = 0
    dead: int = 0
    unknown: int = 0
    repeated_safe: int = 0
    repeated_unsafe: int = 0
    lost: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    invented: list[str] = field(default_factory=list)
    unanswered_runs: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        figures = {
            name: len(value) if isinstance(value, list) else value for name, value in vars(self).items()
        }
        return " ".join(f"{name}={value}" for name, value in figures.items())


def check(history: Iterable[Sent], outcomes: Mapping[str, Outcome], journal: Iterable[str]) -> Verdict:
    """Compare all three views.

    Args:
        history: every request sent, whether accepted or not.
        outcomes: by uuid, for every accepted request that could be read.
        journal: the app's lines, `start <uuid>` and `end <uuid>`.
    """
    starts, ends = _count(journal)
    verdict = Verdict()
    known = set()
    for sent in history:
        known.add(sent.uuid)
        _count_repeats(verdict, sent, starts)
        if sent.handle is not None:
            verdict.accepted += 1
            _judge(verdict, sent, outcomes.get(sent.uuid), ends)
    verdict.invented = [uuid for uuid in starts if uuid not in known]
    return verdict


def _count(journal: Iterable[str]) -> tuple[Counter[str], Counter[str]]:
    starts: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for line in journal:
        word, _, uuid = line.strip().partition(" ")
        (starts if word == "start" else ends)[uuid] += 1
    return starts, ends


def _count_repeats(verdict: Verdict, sent: Sent, starts: Counter[str]) -> None:
    repeats = max(0, starts[sent.uuid] - 1)
    if sent.method in ("POST", "PATCH"):
        verdict.repeated_unsafe += repeats
    else:
        verdict.repeated_safe += repeats


def _judge(verdict: Verdict, sent: Sent, outcome: Outcome | None, ends: Counter[str]) -> None:
    if outcome is None or outcome.state not in ("done", "failed"):
        verdict.lost.append(sent.uuid)
        return
    if len(set(outcome.answers)) > 1:
        verdict.altered.append(sent.uuid)
    if outcome.state == "failed":
        verdict.dead += 1
        verdict.unknown += outcome.reason == "outcome-unknown"
        return
    expected = (201, f"{sent.uuid} {sent.secret}".encode())
    if not outcome.answers:
        verdict.lost.append(sent.uuid)
    elif any(answer != expected for answer in outcome.answers):
        verdict.mixed.append(sent.uuid)
    elif not ends[sent.uuid]:
        verdict.unanswered_runs.append(sent.uuid)
    else:
        verdict.answered += 1
