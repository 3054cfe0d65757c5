"""The ways to the Kubernetes API: a pod's ServiceAccount over TLS, a kubeconfig; and the settings that ask for them."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes.config import incluster_config

from service import kube as kube_module
from service.app import _deployer, _jobs
from service.kube import KubeApi, KubeError
from service.rayjobs import KubeRayJobs
from service.serving.rayservice import RayServiceDeployer
from service.settings import Settings
from simpo.errors import ConfigError
from tests.fakes import FakeClock
from tests.service.certificates import self_signed
from tests.service.kube_double import NAMESPACE, TOKEN, KubeDouble
from tests.service.test_rayjobs import TEMPLATE
from tests.service.test_rayservice import NAME, SERVICE, kubeconfig


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[KubeDouble, Path]]:
    """A double behind TLS, and the folder that kubelet would mount."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate, key = self_signed(tmp_path, "IP:127.0.0.1")
    context.load_cert_chain(certificate, key)
    with KubeDouble(tls=context) as double:
        (tmp_path / "token").write_text(TOKEN, encoding="utf-8")
        (tmp_path / "namespace").write_text(NAMESPACE, encoding="utf-8")
        monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
        monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(certificate))
        monkeypatch.setattr(kube_module, "_NAMESPACE_FILE", tmp_path / "namespace")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", double.url.rpartition(":")[2])
        yield double, tmp_path


def test_a_pod_has_its_token_its_authority_and_its_namespace(pod: tuple[KubeDouble, Path]) -> None:
    double, _ = pod
    double.put("rayservices", SERVICE)
    api = KubeApi()
    assert api.namespace == NAMESPACE
    assert api.get("rayservices", NAME) is not None
    api.close()


def test_another_authority_is_not_believed(pod: tuple[KubeDouble, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", ssl.get_default_verify_paths().cafile or "")
    if not incluster_config.SERVICE_CERT_FILENAME:
        pytest.skip("this machine has no certificates of its own")
    with pytest.raises(KubeError, match="does not answer") as caught:
        KubeApi().get("rayservices", NAME)
    assert caught.value.unreachable and pod[0].calls == []


def test_outside_a_pod_and_without_a_file_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="SIMPO_KUBECONFIG: no way to the Kubernetes API"):
        KubeApi().get("rayservices", NAME)
    with pytest.raises(ConfigError, match="SIMPO_KUBECONFIG: no way to the Kubernetes API"):
        KubeApi(kubeconfig=tmp_path / "none").get("rayservices", NAME)


def test_the_settings_choose_who_works(tmp_path: Path) -> None:
    with KubeDouble() as double:
        double.put("rayservices", SERVICE)
        double.put("rayjobs", TEMPLATE)
        file = str(kubeconfig(tmp_path, double.url))
        settings = Settings(submit_by="rayjob", deploy_by="rayservice", kubeconfig=file)
        jobs, deployer = _jobs(settings, FakeClock()), _deployer(settings)
        assert isinstance(jobs, KubeRayJobs) and jobs.list() == {}
        assert isinstance(deployer, RayServiceDeployer) and deployer.observe() == {}
        assert [verb for verb, _, _ in double.calls] == ["list", "get"]
    for name in ("submit_by", "deploy_by"):
        with pytest.raises(ConfigError, match="must be one of"):
            Settings(**{name: "magic"})
