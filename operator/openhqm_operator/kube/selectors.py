"""Label selectors, as the API server evaluates them. Pure.

Source: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def matches(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a metav1.LabelSelector selects *labels*. An empty one selects everything, none nothing."""
    if selector is None:
        return False
    return has_all(selector.get("matchLabels"), labels) and all(
        _holds(expression, labels) for expression in selector.get("matchExpressions") or ()
    )


def has_all(wanted: Mapping[str, str] | None, labels: Mapping[str, str]) -> bool:
    """Whether *labels* hold all of *wanted*, as the selector of a Service asks; its empty one is no one's."""
    return all(labels.get(name) == value for name, value in (wanted or {}).items())


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    name, values = expression["key"], expression.get("values") or ()
    match expression["operator"]:
        case "In":
            return labels.get(name) in values
        case "NotIn":
            return labels.get(name) not in values
        case "Exists":
            return name in labels
        case "DoesNotExist":
            return name not in labels
        case unknown:
            raise ValueError(f"not an operator of a label selector: {unknown}")
