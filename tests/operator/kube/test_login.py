from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from structlog.testing import capture_logs
from tests.cluster.pki import Authority

from openhqm_operator.kube.login import (
    LoginFailed,
    ServiceAccountLogin,
    find_login,
    from_kubeconfig,
    in_cluster,
)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """What the kubelet mounts into a Pod."""
    authority = Authority(tmp_path / "pki")
    (tmp_path / "ca.crt").write_bytes(authority.bundle)
    (tmp_path / "token").write_text("first\n")
    return tmp_path


async def test_a_token_is_read_again_once_a_minute(account: Path) -> None:
    clock = Clock()
    login = ServiceAccountLogin("https://10.96.0.1:443", account, clock)
    (account / "token").write_text("second")

    clock.now += 59
    before = await login.authorization()
    clock.now += 1
    after = await login.authorization()

    assert (before, after) == ("Bearer first", "Bearer second")


async def test_a_refused_token_is_read_again_at_once(account: Path) -> None:
    login = ServiceAccountLogin("https://10.96.0.1:443", account, Clock())
    (account / "token").write_text("second")

    login.refused()

    assert await login.authorization() == "Bearer second"


@pytest.mark.parametrize("content", ["", None])
async def test_a_token_that_cannot_be_read_for_a_moment_is_kept(account: Path, content: str | None) -> None:
    login = ServiceAccountLogin("https://10.96.0.1:443", account, Clock())
    if content is None:
        (account / "token").unlink()
    else:
        (account / "token").write_text(content)

    login.refused()
    with capture_logs() as logs:
        token = await login.authorization()

    assert token == "Bearer first"
    assert [line["event"] for line in logs] == ["token.unreadable"]
    assert "first" not in str(logs)


def test_a_pod_without_an_account_is_told(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoginFailed, match="not in a Pod"):
        in_cluster(account)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    (account / "token").unlink()
    with pytest.raises(LoginFailed, match="token"):
        in_cluster(account)
    with pytest.raises(LoginFailed, match=r"ca\.crt"):
        in_cluster(account / "nowhere")


@pytest.mark.parametrize(
    ("host", "server"), [("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_a_pod_is_told_where_the_server_is(
    account: Path, monkeypatch: pytest.MonkeyPatch, host: str, server: str
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")

    assert in_cluster(account).server == server


async def test_a_kubeconfig_with_a_client_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    path = authority.kubeconfig("https://127.0.0.1:6443", authority.issue("admin"))

    login = await find_login(path)

    assert login.server == "https://127.0.0.1:6443"
    assert await login.authorization() is None
    assert login.tls.get_ca_certs()


async def test_a_kubeconfig_is_read_again_after_its_token_was_refused(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(kubeconfig("first"))
    login = await from_kubeconfig(path)
    path.write_text(kubeconfig("second"))

    before = await login.authorization()
    login.refused()

    assert (before, await login.authorization()) == ("Bearer first", "Bearer second")


async def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoginFailed, match="nowhere"):
        await from_kubeconfig(tmp_path / "nowhere")


def kubeconfig(token: str) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:6443"}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
    )
