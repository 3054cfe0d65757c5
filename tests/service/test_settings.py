"""Settings: each variable once, honoured or refused by name; and what must not be seen of them."""

from pathlib import Path

import pytest

from service.settings import Settings, variable_of
from simpo.errors import ConfigError

pytestmark = pytest.mark.quick

EVERYTHING = Settings(
    database_url="postgresql+psycopg://simpo:pw@db/simpo",
    store=Path("/store"),
    bind_host="0.0.0.0",
    bind_port=9000,
    ray_jobs_url="http://train:8265",
    ray_serve_url="http://serve:8265",
    ray_token="ray-secret",
    serve_url="https://serve:8000",
    proxy_models=False,
    reconcile=False,
    reconcile_interval_s=0.5,
    max_running_sweeps=4,
    max_attempts=5,
    heartbeat_stale_s=30.0,
    heartbeat_hung_s=600.0,
    driver_python="/opt/python",
    driver_resource="driver",
    driver_stop_s=60,
    submit_by="rayjob",
    deploy_by="rayservice",
    kube_namespace="other",
    kubeconfig="/kubeconfig",
    public_judges=True,
    project_sweeps=2,
    project_trials=8,
    project_hours=100.5,
    project_hours_period="total",
    audit_days=400,
    oidc_issuer="https://login.example/realms/a",
    oidc_audience="simpo",
    oidc_jwks_url="https://login.example/keys",
    oidc_project_claim="project",
    oidc_role_claim="realm_access.roles",
    vllm_python="/opt/vllm/bin/python",
    model_cache="/models",
    model_cache_bytes=1 << 40,
    wake_s=60.0,
    max_waiting=16,
    source_roots="/srv/data:/srv/models",
    production=True,
)


def test_nothing_set_is_the_embedded_stack() -> None:
    assert Settings.from_env({}) == Settings()
    assert Settings.from_env({"SIMPO_STORE": "", "SIMPO_SERVICE_HOST": "10.0.0.1", "PATH": "/bin"}) == Settings()
    assert Settings().serve_dashboard_url == Settings().ray_jobs_url


def test_every_setting_goes_through_the_environment_and_back() -> None:
    environment = EVERYTHING.to_env()
    assert len(environment) == len(Settings.__dataclass_fields__)
    assert Settings.from_env(environment) == EVERYTHING
    assert Settings.from_env(Settings().to_env()) == Settings()


def test_every_setting_has_its_own_variable_and_a_sentence() -> None:
    variables = [variable_of(name) for name in Settings.__dataclass_fields__]
    assert len(set(variables)) == len(variables) and all(name.startswith("SIMPO_") for name in variables)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SIMPO_BIND_PORT", "http"),
        ("SIMPO_BIND_PORT", "70000"),
        ("SIMPO_RECONCILE", "maybe"),
        ("SIMPO_MAX_ADAPTERS", "-1"),
        ("SIMPO_MODEL_CACHE", "models"),
        ("SIMPO_MODEL_CACHE_BYTES", "0"),
        ("SIMPO_WAKE_S", "0"),
        ("SIMPO_MAX_WAITING", "0"),
        ("SIMPO_RECONCILE_INTERVAL_S", "0"),
        ("SIMPO_HEARTBEAT_STALE_S", "-1"),
        ("SIMPO_HEARTBEAT_STALE_S", "nan"),
        ("SIMPO_MAX_RUNNING_SWEEPS", "0"),
        ("SIMPO_RAY_JOBS_URL", "ray:8265"),
        ("SIMPO_SERVE_URL", "ftp://serve"),
        ("SIMPO_PROJECT_SWEEPS", "0"),
        ("SIMPO_PROJECT_HOURS", "-1"),
        ("SIMPO_PROJECT_HOURS_PERIOD", "week"),
        ("SIMPO_AUDIT_DAYS", "0"),
        ("SIMPO_AUDIT_DAYS", "999999"),
        ("SIMPO_OIDC_ISSUER", "http://login.example"),
        ("SIMPO_OIDC_JWKS_URL", "http://127.0.0.1/keys"),
        ("SIMPO_DATABASE_URL", "mysql://u:pw@h/d"),
    ],
)
def test_a_value_that_cannot_be_honoured_is_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable) as caught:
        Settings.from_env({variable: value})
    assert "pw" not in str(caught.value)


def test_an_issuer_needs_an_audience() -> None:
    with pytest.raises(ConfigError, match="SIMPO_OIDC_AUDIENCE"):
        Settings.from_env({"SIMPO_OIDC_ISSUER": "https://login.example"})


def test_no_secret_is_shown() -> None:
    assert "ray-secret" not in repr(EVERYTHING) and "pw" not in repr(EVERYTHING)
