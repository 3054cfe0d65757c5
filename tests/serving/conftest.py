"""One Ray head with Serve for all tests of the package that need a real one: starting it takes 15 s."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.local_ray import RayHead
from service.serving.deployer import Deployer, ServeDeployer
from tests.ray_head import private_head
from tests.serving.tiny import tiny_checkpoint
from tests.sweeps.s3_double import S3Double


@pytest.fixture(scope="package")
def head(tmp_path_factory: pytest.TempPathFactory, s3_servers: S3Double) -> Iterator[tuple[RayHead, str]]:
    """A private Ray head, whose replicas find the S3 double, and its token."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_servers.environment().items():
            patch.setenv(name, value)
        with private_head(tmp_path_factory.mktemp("serve") / "ray.log") as head:
            patch.undo()
            yield head


@pytest.fixture(scope="package")
def serve_deployer(head: tuple[RayHead, str]) -> Iterator[Deployer]:
    """Declares what it is told to that head."""
    ray, token = head
    port = httpx.URL(ray.serve_url).port
    assert port is not None
    deployer = ServeDeployer(ray.dashboard_url, token, http_port=port, timeout_s=120)
    yield deployer
    deployer.close()


@pytest.fixture(scope="package")
def good_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that loads."""
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "good")


@pytest.fixture(scope="package")
def pickled_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with a pickle planted in it."""
    directory = tiny_checkpoint(tmp_path_factory.mktemp("models") / "bad")
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return directory
