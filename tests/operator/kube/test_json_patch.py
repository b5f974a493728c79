"""Patches, applied by somebody else's implementation."""

from __future__ import annotations

from typing import Any

import jsonpatch
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.pods import PLATFORM, TOKEN, legacy, proxy

from openhqm_operator.injecting.injection import inject
from openhqm_operator.kube.json_patch import make_patch

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("ab/~"), inner, max_size=4),
    max_leaves=12,
)


@given(before=st.dictionaries(st.text(max_size=3), JSON), after=st.dictionaries(st.text(max_size=3), JSON))
def test_the_patch_makes_one_of_the_other(before: Any, after: Any) -> None:
    assert jsonpatch.apply_patch(before, make_patch(before, after)) == after


def test_equal_objects_need_no_patch() -> None:
    assert make_patch(legacy(), legacy()) == []


def test_a_pod_s_own_lists_are_never_replaced() -> None:
    pod = legacy()
    injected = inject(pod, proxy("NamedPort"), PLATFORM, TOKEN).pod

    patch = make_patch(pod, injected)

    assert jsonpatch.apply_patch(pod, patch) == injected
    assert not any(
        isinstance(each["value"], list) and each["op"] == "replace" for each in patch if "value" in each
    )
