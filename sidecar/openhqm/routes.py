"""Which of the four actions a request takes. Pure.

Ingress asks once per request. Rules look at the very bytes that are forwarded: the path is never
decoded or normalised, so nothing can be routed as one path and run as another.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from openhqm.errors import SettingsError
from openhqm.headers import Pair
from openhqm.settings import InterceptSettings, RouteMatch, RouteSettings

QUEUED_METHODS = frozenset({b"POST", b"PUT", b"PATCH", b"DELETE"})


class Action(enum.Enum):
    """What happens to a request."""

    QUEUE = "queue"
    """Stored, acknowledged, replayed."""
    PASS = "pass"  # noqa: S105
    """Streamed to the app and back at once."""
    REJECT = "reject"
    """Refused with 403."""
    SHADOW = "shadow"
    """Passed, and counted as what would have been queued."""


@dataclass(frozen=True, slots=True)
class Decision:
    """An action and what the route says about it; None leaves it to the settings' defaults."""

    action: Action
    wait_seconds: float = 0.0
    timeout_seconds: float | None = None
    max_attempts: int | None = None
    deadline_seconds: float | None = None
    repeat: bool = False
    priority: int = 5


_STORED = (Action.QUEUE, Action.SHADOW)
"""What an upgrade can be no part of."""

_QUEUE = Decision(Action.QUEUE)
_PASS = Decision(Action.PASS)
_INTERCEPT = InterceptSettings()
_Condition = Callable[[bytes, bytes, Sequence[Pair]], bool]


class Routes:
    """The compiled rules, first match wins; after them the default rules.

    By default POST, PUT, PATCH and DELETE queue and all else passes. What cannot be replayed passes
    too: upgrades always, and requests that accept `text/event-stream` unless a rule says otherwise.
    """

    def __init__(
        self, rules: Sequence[RouteSettings] = (), intercept: InterceptSettings = _INTERCEPT
    ) -> None:
        """Compile the rules. Raises SettingsError for a regular expression that bytes cannot match.

        Args:
            intercept: with `shadow`, or a share of 0, what would be queued takes another action; other
                shares are decided request by request, by `share.py`.
        """
        instead = _instead_of_queue(intercept)
        self._default = replace(_QUEUE, action=instead)
        self._rules = tuple((_conditions(rule.match), _decision(rule, instead)) for rule in rules)

    def decide(
        self, method: bytes, target: bytes, pairs: Sequence[Pair], *, upgrade: bool = False
    ) -> Decision:
        """Return the decision for a request.

        Args:
            target: path and query as received; only the path is matched.
            upgrade: whether the client asks for another protocol on this connection.
        """
        if self._rules:
            path = target.partition(b"?")[0]
            for conditions, decision in self._rules:
                if all(holds(method, path, pairs) for holds in conditions):
                    return _PASS if upgrade and decision.action in _STORED else decision
        if method not in QUEUED_METHODS or upgrade or _accepts_events(pairs):
            return _PASS
        return self._default


def _instead_of_queue(intercept: InterceptSettings) -> Action:
    if intercept.shadow:
        return Action.SHADOW
    return Action.QUEUE if intercept.percent else Action.PASS


def _decision(rule: RouteSettings, instead: Action) -> Decision:
    action = Action(rule.action)
    return Decision(
        action=instead if action is Action.QUEUE else action,
        wait_seconds=rule.wait_seconds,
        timeout_seconds=rule.timeout_seconds,
        max_attempts=rule.max_attempts,
        deadline_seconds=rule.deadline_seconds,
        repeat=rule.delivery == "repeat",
        priority=5 if rule.priority is None else rule.priority,
    )


def _conditions(match: RouteMatch) -> tuple[_Condition, ...]:
    found: list[_Condition] = []
    if match.methods:
        methods = frozenset(method.encode() for method in match.methods)
        found.append(lambda method, _path, _pairs: method in methods)
    if match.path is not None:
        exact = match.path.encode()
        found.append(lambda _method, path, _pairs: path == exact)
    if match.prefix is not None:
        prefix = match.prefix.encode()
        found.append(lambda _method, path, _pairs: path.startswith(prefix))
    if match.regex is not None:
        matches = _compiled(match.regex).fullmatch
        found.append(lambda _method, path, _pairs: matches(path) is not None)
    found += [
        _header_condition(
            header.name.lower().encode(), None if header.exact is None else header.exact.encode()
        )
        for header in match.headers
    ]
    return tuple(found)


def _compiled(regex: str) -> re.Pattern[bytes]:
    try:
        return re.compile(regex.encode())
    except re.error as exc:
        # What is fine for text may mean nothing for bytes: \u00e9, \N{...}.
        raise SettingsError(f"routes: match.regex is matched against bytes: {exc}") from exc


def _header_condition(name: bytes, exact: bytes | None) -> _Condition:
    def holds(_method: bytes, _path: bytes, pairs: Sequence[Pair]) -> bool:
        return any(key.lower() == name and (exact is None or value == exact) for key, value in pairs)

    return holds


def _accepts_events(pairs: Sequence[Pair]) -> bool:
    for name, value in pairs:
        if len(name) == 6 and name.lower() == b"accept" and b"text/event-stream" in value.lower():
            return True
    return False
