"""What the reconciler does to the Kubernetes API, against k8s/: Roles are calls, RayJobs pass every check."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.cluster import JobsError
from service.serving.deployer import DeployerError
from tests.k8s import ray_rules
from tests.k8s.checklist import CHECKS, nothing_alpha
from tests.k8s.crd import CustomKinds
from tests.k8s.lints import LINTS
from tests.k8s.manifests import K8S, NAMESPACE, REST, pods
from tests.k8s.pod_security import violations
from tests.service.kube_double import KubeDouble
from tests.service.test_rayjobs import NAME as TEMPLATE
from tests.service.test_rayjobs import Stage as JobsStage
from tests.service.test_rayservice import NAME, OTHER, WINNER
from tests.service.test_rayservice import Stage as ServiceStage

Json = dict[str, Any]
Call = tuple[str, str, str]


@pytest.fixture
def kube() -> Iterator[KubeDouble]:
    with KubeDouble() as double:
        yield double


def rules_of(component: str) -> list[Json]:
    """The rules of its one Role, which its one RoleBinding gives to the reconciler."""
    found = list(yaml.safe_load_all((K8S / "components" / component / "role.yaml").read_text(encoding="utf-8")))
    role, binding = found
    assert (role["kind"], binding["kind"]) == ("Role", "RoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "simpo-reconciler", "namespace": NAMESPACE}]
    rules: list[Json] = role["rules"]
    return rules


def granted(rules: list[Json], calls: list[Call]) -> set[Call]:
    """What the rules allow, in the form of `calls`; a rule without names has the names that were called."""
    return {
        (verb, resource, name)
        for rule in rules
        for verb in rule["verbs"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames")
        or {n for v, r, n in calls if (v, r) == (verb, resource)}
        or {"(never called)"}
    }


def test_the_deployers_role_is_what_it_calls(kube: KubeDouble, tmp_path: Path) -> None:
    stage = ServiceStage(kube, tmp_path)
    kube.rules = rules_of("rayservice")
    for wish in ([WINNER], [WINNER, OTHER], []):
        stage.deployer.apply(wish)
        stage.pass_time()
        stage.deployer.observe()
    kube.remove("rayservices", NAME)
    with pytest.raises(DeployerError, match="there is no RayService"):
        stage.deployer.apply([WINNER])
    assert set(kube.calls) == granted(kube.rules, kube.calls)


def test_the_submitters_role_is_what_it_calls(kube: KubeDouble, tmp_path: Path) -> None:
    stage = JobsStage(kube, tmp_path)
    kube.rules = rules_of("queued-sweeps")
    stage.submit()
    with pytest.raises(JobsError, match="already exists"):
        stage.submit()
    stage.ray.tick(4)
    stage.jobs.list()
    stage.jobs.logs("swp-a-a1")
    stage.jobs.stop("swp-a-a1")
    stage.ray.tick()
    assert stage.jobs.list() == {}
    assert set(kube.calls) == granted(kube.rules, kube.calls)


def test_a_submitted_rayjob_passes_what_its_template_passes(
    kube: KubeDouble, tmp_path: Path, rendered: Callable[[Path], list[Json]], custom_kinds: CustomKinds
) -> None:
    objects = rendered(REST)
    stage = JobsStage(kube, tmp_path)
    (template,) = [thing for thing in objects if thing["metadata"]["name"] == TEMPLATE]
    kube.put("rayjobs", copy.deepcopy(template))
    stage.submit("swp-01j8x0000000000000000000zz-a12")
    made = copy.deepcopy(kube.objects["rayjobs", NAMESPACE, "swp-01j8x0000000000000000000zz-a12"])
    for key in ("uid", "generation", "creationTimestamp", "resourceVersion", "managedFields"):
        made["metadata"].pop(key)
    whole = [*(thing for thing in objects if thing is not template), made]
    assert custom_kinds.errors(made) == []
    assert ray_rules.refusals([made]) == []
    assert [f"{view.owner}: {text}" for view in pods([made]) for text in violations(view.pod)] == []
    before = [text for lint in LINTS for text in lint(objects)]
    assert [text for lint in LINTS for text in lint(whole)] == before == []
    assert [text for check in CHECKS if check is not nothing_alpha for text in check(whole)] == []
