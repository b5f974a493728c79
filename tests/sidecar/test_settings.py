"""Defaults, sources, precedence, and what is said when they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from openhqm.errors import SettingsError
from openhqm.settings import Area, KeySettings, Probe, RouteSettings, Settings, load

DEFAULTS: dict[str, Any] = {
    "mode": "combined",
    "app.url": None,
    "app.health_path": None,
    "queue.name": "default",
    "queue.max_backlog": 1000000,
    "queue.max_bytes": 8589934592,
    "queue.max_age_seconds": 86400.0,
    "queue.key": KeySettings(),
    "handle.keys": (),
    "store.url": "sqlite:///./openhqm-data/openhqm.db",
    "store.require_durability": "process",
    "store.previous_url": None,
    "store.spill_bytes": 262144,
    "blobs.url": None,
    "broker.url": None,
    "routes": (),
    "intercept.shadow": False,
    "intercept.percent": 100,
    "ingress.host": "0.0.0.0",
    "ingress.port": 8000,
    "ingress.max_body_bytes": 67108864,
    "ingress.max_wait_seconds": 60.0,
    "ingress.body_timeout_seconds": 60.0,
    "ingress.max_connections": 10_000,
    "ingress.keepalive_seconds": 75.0,
    "ingress.hold_seconds": 0.0,
    "ingress.max_held": 1000,
    "ingress.submit_api": None,
    "ingress.api_keys": (),
    "ingress.identity_header": "Authorization",
    "ingress.reserved_prefix": "/.openhqm",
    "ingress.trusted_proxies": (),
    "ingress.forwarded_headers": True,
    "egress.concurrency": 8,
    "egress.lease_seconds": 30.0,
    "egress.app_timeout_seconds": 300.0,
    "egress.connect_timeout_seconds": 5.0,
    "egress.reuse_idle_seconds": 1.0,
    "egress.rate_per_second": 0.0,
    "egress.paused": False,
    "breaker.failures": 5,
    "breaker.open_seconds": 1.0,
    "breaker.max_open_seconds": 30.0,
    "retry.max_attempts": 5,
    "retry.max_claims": 5,
    "retry.initial_backoff_seconds": 1.0,
    "retry.max_backoff_seconds": 300.0,
    "retry.statuses": (429, 503),
    "retry.budget_percent": 10,
    "response.ttl_seconds": 86400.0,
    "response.max_bytes": 67108864,
    "response.reserve_bytes": 2048,
    "dead_letters.ttl_seconds": 2592000.0,
    "callback.allowed_hosts": (),
    "callback.signing_secrets": (),
    "callback.allow_http": False,
    "callback.timeout_seconds": 20.0,
    "callback.max_attempts": 10,
    "callback.initial_backoff_seconds": 5.0,
    "callback.max_backoff_seconds": 3600.0,
    "callback.concurrency": 4,
    "drain.accept_seconds": 2.0,
    "drain.timeout_seconds": 25.0,
    "health.host": "0.0.0.0",
    "health.port": 16020,
    "admin.host": "127.0.0.1",
    "admin.port": 16000,
    "pod.token": None,
    "pod.probes": {},
    "pod.readiness": "proxy",
    "log.level": "info",
    "log.format": "auto",
    "log.access": "errors",
}


def values(settings: Settings) -> dict[str, Any]:
    """Every setting as "area.name" -> plain value."""
    found: dict[str, Any] = {}
    for area in Settings.model_fields:
        held = getattr(settings, area)
        if isinstance(held, Area):
            found |= {f"{area}.{name}": getattr(held, name) for name in type(held).model_fields}
        else:
            found[area] = held
    return {
        key: value.get_secret_value() if isinstance(value, SecretStr) else value
        for key, value in found.items()
    }


def write(folder: Path, text: str) -> Path:
    path = folder / "openhqm.yaml"
    path.write_text(text)
    return path


def test_every_default_is_pinned() -> None:
    """A changed default is a changed promise: change it here too, and say so in the CHANGELOG."""
    assert values(load(environ={})) == DEFAULTS


def test_building_settings_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENHQM_EGRESS__CONCURRENCY", "99")

    assert Settings().egress.concurrency == 8
    assert load().egress.concurrency == 99


def test_every_setting_has_a_description() -> None:
    for area in Settings.model_fields:
        held = getattr(Settings(), area)
        fields = type(held).model_fields if isinstance(held, Area) else {area: Settings.model_fields[area]}
        assert all(field.description for field in fields.values()), area


# --- sources ----------------------------------------------------------------------------------------


def test_stronger_sources_win_setting_by_setting(tmp_path: Path) -> None:
    config = write(tmp_path, "egress: {concurrency: 1, lease_seconds: 11, rate_per_second: 21}\n")
    environ = {"OPENHQM_EGRESS__LEASE_SECONDS": "12", "OPENHQM_EGRESS__RATE_PER_SECOND": "22"}

    egress = load(config=config, environ=environ, flags={"egress": {"rate_per_second": 23}}).egress

    assert (egress.concurrency, egress.lease_seconds, egress.rate_per_second) == (1, 12.0, 23.0)


@pytest.mark.parametrize(
    ("name", "value", "key", "expected"),
    [
        ("OPENHQM_MODE", "ingress", "mode", "ingress"),
        ("OPENHQM_APP__URL", "http://127.0.0.1:8080/", "app.url", "http://127.0.0.1:8080"),
        ("OPENHQM_INGRESS__SUBMIT_API", "true", "ingress.submit_api", True),
        ("OPENHQM_RETRY__STATUSES", "[429, 500]", "retry.statuses", (429, 500)),
        ("OPENHQM_RETRY__STATUSES", "429, 500", "retry.statuses", (429, 500)),
        ("OPENHQM_RETRY__STATUSES", "500", "retry.statuses", (500,)),
        ("OPENHQM_CALLBACK__ALLOWED_HOSTS", "a.example,*.b.example", "callback.allowed_hosts",
         ("a.example", "*.b.example")),
        ("OPENHQM_EGRESS", '{"concurrency": 3}', "egress.concurrency", 3),
        ("openhqm_egress__concurrency", "4", "egress.concurrency", 4),
        ("OPENHQM_APP__URL", "", "app.url", None),
        ("OPENHQM_QUEUE__KEY", '{"json": "/a"}', "queue.key", KeySettings.model_validate({"json": "/a"})),
        ("OPENHQM_POD__PROBES", '{"app": {"tcp": {"port": 80}}}', "pod.probes",
         {"app": Probe.model_validate({"tcp": {"port": 80}})}),
        ("OPENHQM_POD__TOKEN", "0123456789abcdef", "pod.token", "0123456789abcdef"),
    ],
)  # fmt: skip
def test_environment_is_read(name: str, value: str, key: str, expected: object) -> None:
    assert values(load(environ={name: value}))[key] == expected


def test_a_variable_of_one_setting_wins_over_one_for_its_area() -> None:
    environ = {"OPENHQM_EGRESS__CONCURRENCY": "4", "openhqm_egress": '{"concurrency": 3, "lease_seconds": 9}'}

    egress = load(environ=environ).egress

    assert (egress.concurrency, egress.lease_seconds) == (4, 9.0)


def test_routes_come_from_the_environment_as_json() -> None:
    routes = load(environ={"OPENHQM_ROUTES": '[{"match": {"prefix": "/hooks"}, "action": "queue"}]'}).routes

    assert [(route.match.prefix, route.action) for route in routes] == [("/hooks", "queue")]


@pytest.mark.parametrize("name", ["OPENHQM_PORT", "OPENHQM_SERVICE_HOST", "OPENHQM_ADMIN_PORT", "OPENHQM_X"])
def test_variables_of_others_are_left_alone(name: str) -> None:
    """Kubernetes sets OPENHQM_PORT and OPENHQM_ADMIN_PORT for Services called openhqm and openhqm-admin."""
    assert load(environ={name: "tcp://10.0.0.1:8000"}) == Settings()


@pytest.mark.parametrize(
    ("written", "environ", "expected"),
    [
        ("${NAME}", {"NAME": "orders"}, "orders"),
        ("${NAME:-fallback}", {}, "fallback"),
        ("${NAME:-fallback}", {"NAME": "orders"}, "orders"),
        ("a-${NAME}-${OTHER:-z}", {"NAME": "b"}, "a-b-z"),
        ("${NAME:-}", {}, "default"),
    ],
)
def test_file_values_expand_variables(
    tmp_path: Path, written: str, environ: dict[str, str], expected: str
) -> None:
    config = write(tmp_path, f'queue: {{name: "{written}"}}\n')

    assert load(config=config, environ=environ).queue.name == expected


def test_expanded_numbers_are_numbers(tmp_path: Path) -> None:
    config = write(tmp_path, "egress: {concurrency: '${SLOTS}'}\n")

    assert load(config=config, environ={"SLOTS": "12"}).egress.concurrency == 12


def test_expanded_values_cannot_become_yaml(tmp_path: Path) -> None:
    config = write(tmp_path, "ingress: {identity_header: '${HEADER}', api_keys: ['${KEY}', '$${KEY}']}\n")
    hostile = "x}\nmode: egress\n#"

    settings = load(config=config, environ={"HEADER": hostile, "KEY": "a, b]"})

    assert settings.ingress.identity_header == hostile
    assert [key.get_secret_value() for key in settings.ingress.api_keys] == ["a, b]", "${KEY}"]
    assert settings.mode == "combined"


def test_an_empty_file_is_no_settings(tmp_path: Path) -> None:
    assert load(config=write(tmp_path, "# nothing yet\n"), environ={}) == Settings()


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"egress": {"foo": 1}}, "egress.foo: unknown setting"),
        ({"egress": {"concurency": 1}},
         "egress.concurency: unknown setting, did you mean egress.concurrency?"),
        ({"egres": {"foo": 1}}, "egres: unknown setting, did you mean egress?"),
        ({"egress": {"concurrency": 0}}, "egress.concurrency: Input should be greater than 0"),
        ({"egress": {"lease_seconds": True}},
         "egress.lease_seconds: true and false (also written yes, no, on, off) are not what belongs here"),
        ({"ingress": {"port": True}},
         "ingress.port: true and false (also written yes, no, on, off) are not what belongs here"),
        ({"egress": {"lease_seconds": float("inf")}},
         "egress.lease_seconds: Input should be a finite number"),
        ({"egress": {"concurrency": 0, "foo": 1}},
         "egress.concurrency: Input should be greater than 0 (and 1 more)"),
        ({"app": {"url": "https://app/x"}},
         "app.url: must be http://host:port without a path; the app's own paths are kept"),
        ({"app": {"url": "http://user:hunter2@app:80"}},
         "app.url: must be http://host:port; a user and password are not supported there"),
        ({"handle": {"keys": ["short"]}}, "handle.keys: every key needs at least 16 characters"),
        ({"routes": [{"action": "queue", "match": {"regex": "("}}]},
         "routes.0.match.regex: not a regular expression: missing ), unterminated subpattern at position 0"),
        ({"routes": [{"action": "queue", "match": {"path": "/a", "prefix": "/"}}]},
         "routes.0.match: path, prefix and regex exclude each other"),
        ({"retry": {"initial_backoff_seconds": 400}},
         "retry.initial_backoff_seconds must not exceed retry.max_backoff_seconds"),
        ({"health": {"port": 8000}}, "ingress.port, health.port and admin.port must differ"),
        ({"store": {"url": "memory:"}},
         "store.url memory: loses everything when the process ends; "
         "say store.require_durability: none to accept that"),
        ({"drain": {"accept_seconds": 25}}, "drain.accept_seconds must be less than drain.timeout_seconds"),
        ({"app": {"url": "http://127.0.0.1:1"}, "ingress": {"submit_api": True}},
         "ingress.submit_api beside app.url needs ingress.api_keys: who submits reaches all of the app"),
        ({"mode": "egress", "ingress": {"submit_api": True}},
         "ingress.submit_api needs an ingress, but mode is egress"),
        ({"store": {"spill_bytes": 2048}, "ingress": {"max_body_bytes": 1024}},
         "store.spill_bytes must not exceed ingress.max_body_bytes"),
        ({"store": {"url": "redis://a", "previous_url": "redis://a"}},
         "store.previous_url is what was used before store.url; they cannot be the same"),
        ({"queue": {"key": {"header": "a", "path": "(b)"}}},
         "queue.key: header, cookie, path and json exclude each other"),
        ({"intercept": {"percent": 101}}, "intercept.percent: Input should be less than or equal to 100"),
        ({"pod": {"token": "short"}},
         "pod.token: must be at least 16 printable ASCII characters without blanks"),
        ({"pod": {"probes": {"app": {"tcp": {"port": 1}, "grpc": {"port": 1}}}}},
         "pod.probes.app: give exactly one of http, tcp and grpc"),
        ({"pod": {"probes": {"app": {"http": {"path": "/"}}}}}, "pod.probes.app.http.port: Field required"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_in_one_line(flags: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(environ={}, flags=flags)

    assert str(error.value) == line


def _durations(model: type[Area], prefix: str) -> list[str]:
    return [f"{prefix}.{name}" for name in model.model_fields if name.endswith("_seconds")]


DURATIONS = [
    name for area in Settings.model_fields if isinstance(held := getattr(Settings(), area), Area)
    for name in _durations(type(held), area)
]  # fmt: skip


@pytest.mark.parametrize("name", [*DURATIONS, *_durations(RouteSettings, "routes")])
def test_no_duration_exceeds_ten_years(name: str) -> None:
    """What it is added to must stay a date: 1e300 seconds from now would break every state call."""
    area, _, key = name.partition(".")
    flags = {"routes": [{"action": "queue", key: 1e300}]} if area == "routes" else {area: {key: 1e300}}

    with pytest.raises(SettingsError, match=f"{key}: Input should be less than or equal to 315360000$"):
        load(environ={}, flags=flags)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("OPENHQM_EGRESS__FOO", "1", "egress.foo: unknown setting, from OPENHQM_EGRESS__FOO"),
        ("OPENHQM_FOO__BAR", "1", "foo.bar: unknown setting, from OPENHQM_FOO__BAR"),
        ("OPENHQM_MODE__X", "1", "mode.x: unknown setting, from OPENHQM_MODE__X"),
        ("OPENHQM_INGRESS__PORT__X", "1", "ingress.port__x: unknown setting, did you mean ingress.port?, "
         "from OPENHQM_INGRESS__PORT__X"),
        ("OPENHQM_EGRESS", "4", "egress: Input should be a valid dictionary or instance of EgressSettings, "
         "from OPENHQM_EGRESS"),
        ("OPENHQM_EGRESS_CONCURRENCY", "1",
         "OPENHQM_EGRESS_CONCURRENCY: two underscores follow the area: OPENHQM_EGRESS__CONCURRENCY"),
        ("OPENHQM_EGRESS__CONCURRENCY", "many",
         "egress.concurrency: Input should be a valid integer, unable to parse string as an integer, "
         "from OPENHQM_EGRESS__CONCURRENCY"),
        ("OPENHQM_RETRY__STATUSES", "[429", "retry.statuses: must be a list, "
         "from OPENHQM_RETRY__STATUSES"),
    ],
)  # fmt: skip
def test_bad_variables_are_refused_by_name(name: str, value: str, line: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(environ={name: value})

    assert str(error.value) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("- a list\n", "{path}: must be a mapping of areas"),
        ("egress: {foo: 1}\n", "egress.foo: unknown setting"),
        ("routes: {action: queue}\n", "routes: must be a list"),
        ("callback: {allowed_hosts: a.example}\n", "callback.allowed_hosts: must be a list"),
        ("queue: {name: '${NOT_SET}'}\n",
         "{path}: the environment variable NOT_SET is not set and has no default"),
    ],
)  # fmt: skip
def test_bad_files_are_refused(tmp_path: Path, text: str, line: str) -> None:
    config = write(tmp_path, text)

    with pytest.raises(SettingsError) as error:
        load(config=config, environ={})

    assert str(error.value) == line.format(path=config)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"egress: {concurrency: 1\n", "not YAML"),
        (b"egress: {concurrency: 1, concurrency: 2}\n", "the key concurrency is given twice"),
        (b"\xff\xfe", "not YAML"),
    ],
)
def test_unreadable_files_are_refused_in_one_line(tmp_path: Path, content: bytes, fragment: str) -> None:
    config = tmp_path / "openhqm.yaml"
    config.write_bytes(content)

    with pytest.raises(SettingsError) as error:
        load(config=config, environ={})

    assert str(error.value).startswith(f"{config}: ")
    assert fragment in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml: No such file"):
        load(config=tmp_path / "nowhere.yaml", environ={})


def test_secrets_never_show() -> None:
    secrets = {
        "store": {"url": "redis://user:hunter2@127.0.0.1/0"},
        "handle": {"keys": ["hunter2-hunter2-hunter2"]},
        "ingress": {"api_keys": ["hunter2"]},
        "callback": {"signing_secrets": ["whsec_hunter2"]},
    }

    settings = load(environ={}, flags=secrets)

    for shown in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert "hunter2" not in shown


def test_refusals_do_not_repeat_secrets() -> None:
    with pytest.raises(SettingsError) as error:
        load(environ={"OPENHQM_HANDLE__KEYS": "hunter2"})

    assert "hunter2" not in str(error.value)
