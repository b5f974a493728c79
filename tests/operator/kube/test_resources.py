from __future__ import annotations

import pytest

from openhqm_operator.kube import resources
from openhqm_operator.kube.resources import Key, Resource, key_of, resource_of


@pytest.mark.parametrize(
    ("resource", "where", "path"),
    [
        (resources.PODS, (), "/api/v1/pods"),
        (resources.PODS, ("shop",), "/api/v1/namespaces/shop/pods"),
        (resources.PODS, ("shop", "a"), "/api/v1/namespaces/shop/pods/a"),
        (resources.NODES, ("", "n"), "/api/v1/nodes/n"),
        (
            resources.DEPLOYMENTS,
            ("shop", "a", "scale"),
            "/apis/apps/v1/namespaces/shop/deployments/a/scale",
        ),
        (
            resources.ASYNC_PROXIES,
            ("shop", "a/../b"),
            "/apis/openhqm.io/v1alpha1/namespaces/shop/asyncproxies/a%2F..%2Fb",
        ),
    ],
)
def test_paths(resource: Resource, where: tuple[str, ...], path: str) -> None:
    assert resource.path(*where) == path


def test_a_namespace_too_much_or_too_few_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="Node has no namespace"):
        resources.NODES.path("shop", "n")
    with pytest.raises(ValueError, match="Pod 'a' needs a namespace"):
        resources.PODS.path("", "a")


def test_an_object_says_which_resource_it_is_of() -> None:
    for resource in resources.ALL:
        found = resource_of({"apiVersion": resource.api_version, "kind": resource.kind})
        assert found is resource
    with pytest.raises(ValueError, match="apps/v1beta1 Deployment"):
        resource_of({"apiVersion": "apps/v1beta1", "kind": "Deployment"})


def test_a_key_names_an_object() -> None:
    assert key_of({"metadata": {"namespace": "shop", "name": "a"}}) == ("shop", "a")
    assert str(Key("shop", "a")) == "shop/a"
    assert str(Key("", "node-1")) == "node-1"
