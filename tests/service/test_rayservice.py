"""RayServiceDeployer: the contract on a double of the API server with KubeRay, and everything that goes wrong there."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.kube import KubeApi
from service.serving.declared import DesiredDeployment, Replicas
from service.serving.deployer import Deployer, DeployerError
from service.serving.rayservice import APPLIED, RayServiceDeployer
from tests.service.kube_double import NAMESPACE, TOKEN, KubeDouble
from tests.service.kuberay_double import KubeRayDouble
from tests.serving.deployer_contract import DeployerContract

Json = dict[str, Any]

NAME = "simpo-serving"
SERVICE: Json = {
    "apiVersion": "ray.io/v1",
    "kind": "RayService",
    "metadata": {"name": NAME},
    "spec": {"rayClusterConfig": {"rayVersion": "2.60.0", "headGroupSpec": {"rayStartParams": {}, "template": {}}}},
}
WINNER = DesiredDeployment(id="dep_1", name="winner", model_path="/store/winner")
OTHER = DesiredDeployment(id="dep_2", name="other", model_path="/store/other")


def kubeconfig(folder: Path, url: str) -> Path:
    """A file as kubectl has it, for the double."""
    path = folder / "kubeconfig"
    context = {"name": "double", "context": {"cluster": "double", "user": "double", "namespace": NAMESPACE}}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "double",
        "contexts": [context],
        "clusters": [{"name": "double", "cluster": {"server": url}}],
        "users": [{"name": "double", "user": {"token": TOKEN}}],
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


class Stage:
    """A RayService on a double, with a deployer; time moves when a test says `pass_time`."""

    def __init__(self, kube: KubeDouble, folder: Path, **options: Any) -> None:
        self.kube = kube
        self.ray = KubeRayDouble(kube)
        self.kube.put("rayservices", SERVICE)
        self.api = KubeApi(kubeconfig=kubeconfig(folder, kube.url))
        self.deployer = RayServiceDeployer(self.api, NAME, **options)

    def pass_time(self, ticks: int = 8, seconds: float = 20.0) -> None:
        """KubeRay works, then the server's clock moves on."""
        self.ray.tick(ticks)
        self.kube.skip(seconds)

    def states(self) -> dict[str, tuple[str, int | None]]:
        """(state, revision) by id."""
        return {id: (seen.state, seen.revision) for id, seen in self.deployer.observe().items()}

    def thing(self) -> Json:
        """The RayService."""
        return self.kube.objects["rayservices", NAMESPACE, NAME]

    def verbs(self) -> list[str]:
        """Since the last time."""
        found = [verb for verb, _, _ in self.kube.calls]
        self.kube.calls.clear()
        return found


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with KubeDouble(speed=0.0) as kube:
        yield Stage(kube, tmp_path)


@pytest.fixture(scope="module")
def kuberay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KubeRayDouble, RayServiceDeployer]]:
    """KubeRay at work, sixty times as fast as time, and a deployer."""
    with KubeDouble(speed=60.0) as kube:
        ray = KubeRayDouble(kube)
        ray.bad.add("/store/bad")
        kube.put("rayservices", SERVICE)
        folder = tmp_path_factory.mktemp("kube")
        with ray.running():
            yield ray, RayServiceDeployer(KubeApi(kubeconfig=kubeconfig(folder, kube.url)), NAME)


@pytest.fixture
def deployer(kuberay: tuple[KubeRayDouble, RayServiceDeployer]) -> Deployer:
    return kuberay[1]


@pytest.fixture
def good_model() -> Path:
    return Path("/store/good")


@pytest.fixture
def bad_model() -> Path:
    return Path("/store/bad")


class TestRayServiceDeployer(DeployerContract):
    """The contract, with KubeRay at work; a model that answered goes on answering."""

    @pytest.fixture(autouse=True)
    def _ray(self, kuberay: tuple[KubeRayDouble, RayServiceDeployer]) -> None:
        self.ray = kuberay[0]

    def answers(self, name: str) -> None:
        assert self.ray.answers(NAME, f"/d/{name}") is not None


@pytest.mark.parametrize(
    "other", [{"model_path": "s3://bucket/simpo/sweeps/swp_1/attempts/1/trials/trl_0001/final"}, {"engine": "vllm"}]
)
def test_whatever_we_declare_is_known_as_ours(tmp_path: Path, other: dict[str, str]) -> None:
    with KubeDouble(speed=0.0) as kube:
        stage = Stage(kube, tmp_path, replicas=Replicas(vllm_python="/opt/vllm/bin/python", cache_dir="/cache"))
        stage.deployer.apply([replace(WINNER, **other)])
        stage.pass_time()
        assert stage.states() == {WINNER.id: ("READY", WINNER.revision)}


def test_one_field_and_one_annotation_are_ours(stage: Stage) -> None:
    stage.deployer.apply([WINNER])
    config = yaml.safe_load(stage.thing()["spec"]["serveConfigV2"])
    assert config == {
        "http_options": {"host": "0.0.0.0", "port": 8000},
        "applications": [Replicas().application(WINNER)],
    }
    (ours,) = [e for e in stage.thing()["metadata"]["managedFields"] if e["manager"] == "simpo"]
    assert ours["operation"] == "Apply"
    assert ours["fieldsV1"] == {
        "f:metadata": {"f:annotations": {f"f:{APPLIED}": {}}},
        "f:spec": {"f:serveConfigV2": {}},
    }
    assert stage.verbs() == ["get", "patch"]
    stage.deployer.apply([WINNER])
    assert stage.verbs() == ["get"], "the same wish again is not put again"


def test_what_may_sleep_is_declared_so_and_answers_on(stage: Stage) -> None:
    stage.deployer.apply([WINNER])
    stage.pass_time()
    assert stage.states() == {"dep_1": ("READY", 1)}
    drowsy = replace(WINNER, idle_s=60)
    stage.deployer.apply([drowsy])
    config = yaml.safe_load(stage.thing()["spec"]["serveConfigV2"])
    assert config["applications"] == [Replicas().application(drowsy)]
    assert config["applications"][0]["deployments"][0]["autoscaling_config"]["min_replicas"] == 0
    assert stage.states() == {"dep_1": ("READY", 1)} and stage.deployer.observe()["dep_1"].idle_s == 60


def test_an_observed_generation_is_not_believed_at_once(stage: Stage) -> None:
    """KubeRay reads the states before it puts the configuration: what it shows then is the revision before."""
    stage.deployer.apply([WINNER])
    stage.pass_time()
    assert stage.states() == {"dep_1": ("READY", 1)}
    newer = DesiredDeployment(id="dep_1", name="winner", model_path="/store/newer", revision=2)
    stage.deployer.apply([newer, OTHER])
    assert stage.states() == {"dep_1": ("PENDING", 2), "dep_2": ("PENDING", 1)}
    stage.ray.tick()
    status = stage.thing()["status"]
    assert status["observedGeneration"] == stage.thing()["metadata"]["generation"]
    assert status["activeServiceStatus"]["applicationStatuses"]["dep_1"]["status"] == "RUNNING", "the trap"
    assert stage.states()["dep_1"] == ("PENDING", 2)
    assert stage.ray.answers(NAME, "/d/winner") == 1
    stage.pass_time()
    assert stage.states() == {"dep_1": ("READY", 2), "dep_2": ("READY", 1)}


def test_what_answers_stays_ready_while_something_else_is_added(stage: Stage) -> None:
    stage.deployer.apply([WINNER])
    stage.pass_time()
    stage.deployer.apply([WINNER, OTHER])
    assert stage.states() == {"dep_1": ("READY", 1), "dep_2": ("PENDING", 1)}
    stage.ray.tick()
    again = RayServiceDeployer(stage.api, NAME)  # a reconciler that was started anew knows no more than the object
    assert {id: seen.state for id, seen in again.observe().items()} == {"dep_1": "READY", "dep_2": "PENDING"}


def test_a_new_image_makes_a_second_cluster_and_the_first_goes_on_answering(stage: Stage) -> None:
    stage.deployer.apply([WINNER, OTHER])
    stage.pass_time()
    first = stage.thing()["status"]["activeServiceStatus"]["rayClusterName"]
    stage.kube.edit("rayservices", NAME, lambda t: t["spec"]["rayClusterConfig"].update(rayVersion="2.60.1"), "kubectl")
    assert stage.states() == {"dep_1": ("READY", 1), "dep_2": ("READY", 1)}, "before KubeRay has seen it"
    stage.pass_time(2, 1.0)
    status = stage.thing()["status"]
    assert status["pendingServiceStatus"]["rayClusterName"] != first == status["activeServiceStatus"]["rayClusterName"]
    assert "applicationStatuses" not in status["activeServiceStatus"]
    assert stage.states() == {"dep_1": ("READY", 1), "dep_2": ("READY", 1)}
    newer = DesiredDeployment(id="dep_1", name="winner", model_path="/store/newer", revision=2)
    stage.deployer.apply([newer, OTHER])  # in the middle of it: the old cluster never gets this
    stage.pass_time(1)
    assert stage.states() == {"dep_1": ("PENDING", 2), "dep_2": ("READY", 1)}
    assert stage.ray.answers(NAME, "/d/winner") == 1
    stage.pass_time()
    assert stage.thing()["status"]["activeServiceStatus"]["rayClusterName"] != first
    assert stage.states() == {"dep_1": ("READY", 2), "dep_2": ("READY", 1)}
    assert stage.ray.answers(NAME, "/d/winner") == 2


def test_a_bad_image_does_not_take_over_and_can_be_taken_back(stage: Stage) -> None:
    stage.deployer.apply([WINNER])
    stage.pass_time()
    stage.ray.bad.add(WINNER.model_path)
    config = dict(stage.thing()["spec"]["rayClusterConfig"])
    stage.kube.edit("rayservices", NAME, lambda t: t["spec"]["rayClusterConfig"].update(rayVersion="bad"), "kubectl")
    stage.pass_time()
    assert stage.states() == {"dep_1": ("READY", 1)}, "the first cluster answers"
    stage.ray.bad.clear()
    stage.kube.edit("rayservices", NAME, lambda t: t["spec"].update(rayClusterConfig=config), "kubectl")
    stage.pass_time()
    assert stage.states() == {"dep_1": ("READY", 1)}
    assert stage.ray.answers(NAME, "/d/winner") == 1


def test_roll_back_is_a_revision_like_any_other(stage: Stage) -> None:
    paths = []
    for revision, path in enumerate(("/store/a", "/store/b", "/store/a"), start=1):
        stage.deployer.apply([DesiredDeployment(id="dep_1", name="winner", model_path=path, revision=revision)])
        stage.pass_time()
        assert stage.states() == {"dep_1": ("READY", revision)}
        paths.append(yaml.safe_load(stage.thing()["spec"]["serveConfigV2"])["applications"][0]["args"]["model_path"])
    assert paths == ["/store/a", "/store/b", "/store/a"]


def test_a_model_that_does_not_load_is_failed_with_its_cause_beside_the_others(stage: Stage) -> None:
    stage.deployer.apply([WINNER])
    stage.pass_time()
    stage.ray.bad.add(OTHER.model_path)
    stage.deployer.apply([WINNER, OTHER])
    stage.pass_time()
    seen = stage.deployer.observe()
    assert (seen["dep_1"].state, seen["dep_2"].state) == ("READY", "FAILED")
    assert seen["dep_2"].message == "CheckpointError: no model in /store/other"


def test_the_first_model_of_all_that_does_not_load_is_failed_too(stage: Stage) -> None:
    stage.ray.bad.add(WINNER.model_path)
    stage.deployer.apply([WINNER])
    stage.pass_time()
    assert stage.thing()["status"]["activeServiceStatus"] == {}
    assert stage.states() == {"dep_1": ("FAILED", 1)}


@pytest.mark.parametrize(
    ("reason", "state", "words"),
    [
        ("ValidationFailed", "FAILED", "KubeRay refuses the RayService: because"),
        ("InitializingTimeout", "FAILED", "KubeRay gave the RayService up: because"),
        ("ZeroServeEndpoints", "PENDING", "No pod answers: because."),
    ],
)
def test_conditions_have_a_word_of_their_own(stage: Stage, reason: str, state: str, words: str) -> None:
    stage.deployer.apply([WINNER])
    stage.pass_time()
    status = stage.thing()["status"]
    ready = {"type": "Ready", "status": "False", "reason": reason, "message": "because"}
    stage.kube.set_status("rayservices", NAME, {**status, "conditions": [ready]})
    seen = stage.deployer.observe()["dep_1"]
    assert (seen.state, seen.message) == (state, words)


# -- people


def test_a_field_that_a_human_took_is_told_and_left_alone(stage: Stage) -> None:
    stage.deployer.apply([WINNER])
    stage.pass_time()
    config = yaml.safe_load(stage.thing()["spec"]["serveConfigV2"])
    config["applications"][0]["deployments"][0]["max_queued_requests"] = 3
    edited = yaml.safe_dump(config)
    stage.kube.edit("rayservices", NAME, lambda t: t["spec"].update(serveConfigV2=edited))
    stage.pass_time()
    assert stage.states() == {"dep_1": ("READY", -1)}, "not as declared: the reconciler applies again"
    with pytest.raises(DeployerError, match=r'edited by somebody else .*conflict with "kubectl-edit" using ray.io/v1'):
        stage.deployer.apply([WINNER])
    assert stage.thing()["spec"]["serveConfigV2"] == edited


def test_with_force_it_is_taken_back(tmp_path: Path) -> None:
    with KubeDouble(speed=0.0) as kube:
        stage = Stage(kube, tmp_path, force=True)
        stage.deployer.apply([WINNER])
        stage.pass_time()
        stage.kube.edit("rayservices", NAME, lambda t: t["spec"].update(serveConfigV2=": no yaml ["))
        assert stage.states() == {"dep_1": ("PENDING", -1)}
        stage.deployer.apply([WINNER])
        stage.pass_time()
        assert stage.states() == {"dep_1": ("READY", 1)}


def test_a_rayservice_that_a_human_deleted_is_told_with_the_remedy_and_filled_again(stage: Stage) -> None:
    stage.deployer.apply([WINNER])
    stage.pass_time()
    stage.kube.remove("rayservices", NAME)
    stage.verbs()
    for call in (stage.deployer.observe, lambda: stage.deployer.apply([WINNER])):
        with pytest.raises(DeployerError, match="there is no RayService simpo-serving; kubectl apply -k"):
            call()
    assert stage.verbs() == ["get", "get"], "and never made by us: the pods are not ours to describe"
    stage.kube.put("rayservices", SERVICE)
    stage.deployer.apply([WINNER])
    stage.pass_time()
    assert stage.states() == {"dep_1": ("READY", 1)}


def test_one_that_was_made_anew_between_look_and_apply_is_not_touched(stage: Stage) -> None:
    real = stage.api.get

    def then_replaced(plural: str, name: str) -> Any:
        seen = real(plural, name)
        stage.kube.remove(plural, name)
        stage.kube.put(plural, SERVICE)
        return seen

    stage.api.get = then_replaced  # type: ignore[method-assign]
    with pytest.raises(DeployerError, match="UID in precondition"):
        stage.deployer.apply([WINNER])
    assert "serveConfigV2" not in stage.thing()["spec"]


def test_a_stuck_finalizer_is_named(stage: Stage) -> None:
    stage.kube.edit("rayservices", NAME, lambda t: t["metadata"].update(finalizers=["example.com/held"]), "kubectl")
    stage.ray.stuck = True
    stage.kube.remove("rayservices", NAME)
    stage.pass_time()
    with pytest.raises(DeployerError, match=r"is being deleted, and held by example\.com/held"):
        stage.deployer.observe()


def test_a_suspended_one_is_told(stage: Stage) -> None:
    stage.deployer.apply([WINNER])
    stage.pass_time()
    stage.kube.edit("rayservices", NAME, lambda t: t["spec"].update(suspend=True), "kubectl")
    assert stage.deployer.observe()["dep_1"].message == "No pod answers: the RayService is suspended."
