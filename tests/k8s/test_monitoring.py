"""Dashboards and alerts: whole, readable, and over metrics that exist."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.manifests import K8S
from tests.k8s.metrics import names_in, unknown

pytestmark = pytest.mark.quick

Json = dict[str, Any]
FOLDER = K8S / "components" / "monitoring"
DASHBOARDS = sorted((FOLDER / "dashboards").glob("*.json"))


def _rules() -> list[Json]:
    # Straight from the file: alerts need no kustomize, and so no kubectl.
    spec = yaml.safe_load((FOLDER / "rules.yaml").read_text(encoding="utf-8"))["spec"]
    return [rule for group in spec["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(path: Path) -> None:
    board = json.loads(path.read_text(encoding="utf-8"))
    assert board["uid"] == path.stem
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource"]
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    for panel in panels:
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert names_in(target["expr"]), target
            assert unknown(names_in(target["expr"])) == set(), target


def test_every_dashboard_is_delivered(rendered: Callable[[Path], list[Json]]) -> None:
    maps = [
        thing for thing in rendered(K8S / "overlays" / "prod") if "grafana_dashboard" in thing["metadata"]["labels"]
    ]
    assert sorted(name for thing in maps for name in thing["data"]) == [path.name for path in DASHBOARDS]


def test_an_alert_says_what_happened_and_what_to_do() -> None:
    rules = _rules()
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 10
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert rule["annotations"]["summary"].endswith("."), rule["alert"]
        assert rule["annotations"]["description"].endswith("."), rule["alert"]
        assert names_in(rule["expr"]), rule["alert"]
        assert unknown(names_in(rule["expr"])) == set(), rule["alert"]


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (le, app) (rate(a_bucket{x="y"}[5m])) > 0.5', {"a_bucket"}),
        ("a / ignoring(type) b", {"a", "b"}),
        ('absent(a{c="d"}) or absent(b) == 1', {"a", "b"}),
        ("histogram_quantile(0.95, sum(rate(a[5m])) by (le)) and on (pod) b > 1e3", {"a", "b"}),
    ],
)
def test_the_names_in_an_expression(expression: str, names: set[str]) -> None:
    assert names_in(expression) == names


def test_a_metric_that_nobody_exports_is_noticed() -> None:
    known = {"ray_node_mem_used", "kube_pod_status_phase", "ray_serve_haproxy_process_count"}
    known |= {"ray_simpo_engine_answers_total", "ray_simpo_engine_first_token_seconds_bucket"}
    known |= {"simpo_jobs", "simpo_http_requests_total", "simpo_reconcile_pass_seconds_bucket"}
    wrong = {"simpo_queue_age_seconds", "simpo_http_requests", "ray_node_mem_usd", "kube_pod_phase"}
    wrong |= {"ray_simpo_engine_answers", "ray_simpo_engine_queue"}
    assert unknown(known | wrong) == wrong
