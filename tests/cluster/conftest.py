"""Real clusters for tests: an API server alone, or with controllers and fake nodes. One per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.cluster.control_plane import ControlPlane
from tests.cluster.toolbox import Toolbox, ToolsMissing, prepare
from tests.services import missing

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / "asyncproxies.yaml"


@pytest.fixture(scope="session")
def toolbox() -> Toolbox:
    """The cluster's programs; the first time they are built, which takes minutes."""
    try:
        return prepare()
    except ToolsMissing as exc:
        missing(str(exc))
        raise


@pytest.fixture(scope="session")
def api_server(toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An API server and our CRD; nothing acts on what is written there."""
    yield from _running(toolbox, tmp_path_factory.mktemp("api-server"))


@pytest.fixture(scope="session")
def cluster(toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A cluster whose controllers work and whose Pods become Ready, on nodes that run nothing."""
    for plane in _running(toolbox, tmp_path_factory.mktemp("cluster")):
        plane.start_controllers()
        plane.start_fake_nodes()
        yield plane


def _running(toolbox: Toolbox, folder: Path) -> Iterator[ControlPlane]:
    plane = ControlPlane(folder, toolbox)
    try:
        plane.start()
        plane.install_definition(yaml.safe_load(CRD.read_text()))
        yield plane
    finally:
        plane.stop()
