"""The rendered kustomizations, and the data sets of ../shared where they are there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.k8s import manifests
from tests.k8s.crd import CustomKinds

SHARED = manifests.REPO.parent / "shared" / "kuberay"


def _render(folder: Path) -> list[dict[str, Any]]:
    program, reason = manifests.kubectl()
    if program is None:
        pytest.skip(reason)
    return manifests.render(folder)


@pytest.fixture(params=manifests.folders(), ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    """The base, then each overlay, then the components that no overlay uses."""
    path: Path = request.param
    return path


@pytest.fixture
def objects(folder: Path) -> list[dict[str, Any]]:
    """The objects of `folder`."""
    return _render(folder)


@pytest.fixture
def base() -> list[dict[str, Any]]:
    """The objects of the base."""
    return _render(manifests.K8S / "base")


@pytest.fixture
def rendered() -> Callable[[Path], list[dict[str, Any]]]:
    """The renderer, for tests that need several kustomizations."""
    return _render


@pytest.fixture
def dev() -> list[dict[str, Any]]:
    """The objects of the overlay dev."""
    return _render(manifests.K8S / "overlays" / "dev")


@pytest.fixture(scope="session")
def custom_kinds() -> CustomKinds:
    """KubeRay's and Kueue's CRDs."""
    folder = SHARED / "crds"
    if not folder.is_dir():
        pytest.skip("../shared/kuberay/crds is not here: the CRD checks need KubeRay's and Kueue's definitions")
    return CustomKinds.load(folder)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Upstream's Pod Security fixtures."""
    folder = SHARED / "pod-security" / "restricted-v1.37"
    if not folder.is_dir():
        pytest.skip("../shared/kuberay/pod-security is not here: the checker cannot be held to upstream's fixtures")
    return folder
