"""What k8s/README.md lists is what is there: files, secrets, placeholders, overlays and their components."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps.spec import load_spec
from tests.k8s import inventory, lints
from tests.k8s.manifests import ALPHA, K8S, components, folders, name_of, pods

pytestmark = pytest.mark.quick

Json = dict[str, Any]
Render = Callable[[Path], list[Json]]

README = (K8S / "README.md").read_text(encoding="utf-8")
OVERLAYS = sorted(path.parent for path in (K8S / "overlays").glob("*/kustomization.yaml"))
PLACEHOLDER = re.compile(r"[\w.-]+\.invalid|\b192\.0\.2\.\d+")  # RFC 2606 and 5737: names and addresses of nobody
MAX_LINES = 60
"""Of an overlay: a page."""


def _section(heading: str) -> str:
    found = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert found, heading
    return found


def test_every_file_has_one_line() -> None:
    rows = re.findall(r"^\| `([\w./-]+)` \|", _section("Files"), re.MULTILINE)
    there = {path.relative_to(K8S).as_posix() for path in K8S.rglob("*") if path.is_file() and path.name != "README.md"}
    assert len(rows) == len(set(rows))
    assert set(rows) == there, "k8s/README.md, section Files: one line for each file"


def test_every_secret_that_is_referred_to_is_listed(rendered: Render) -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| `([a-z_.]+)` \|", _section("Secrets"), re.MULTILINE)
    assert set(rows) == {secret for folder in folders() for secret in lints.secrets(rendered(folder))}


def test_external_secrets_make_what_is_listed(rendered: Render) -> None:
    made = {
        (thing["spec"]["target"]["name"], entry["secretKey"])
        for thing in rendered(K8S / "overlays" / "prod")
        if thing["kind"] == "ExternalSecret"
        for entry in thing["spec"]["data"]
    }
    assert made == {("simpo-database", "url"), ("simpo-ray", "auth_token")}


def test_every_placeholder_is_listed(rendered: Render) -> None:
    rows = set(re.findall(r"^\| `([^`]+)` \|", _section("To fill in"), re.MULTILINE))
    found = {word for folder in folders() for word in PLACEHOLDER.findall(str(rendered(folder)))}
    assert {word for word in found if word not in rows} == set()
    assert rows == found


def test_overlays_for_one_node_need_nothing_filled_in(rendered: Render) -> None:
    for name in ("dev", "ci-small"):
        assert PLACEHOLDER.findall(str(rendered(K8S / "overlays" / name))) == []


def test_overlays_are_listed_with_their_components() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| ([^|]+) \|", _section("What an overlay has"), re.MULTILINE)
    listed = {name: re.findall(r"`([\w-]+)`", words) for name, words in rows}
    assert listed == {folder.name: components(folder) for folder in OVERLAYS}


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_an_overlay_is_a_page(folder: Path) -> None:
    lines = (folder / "kustomization.yaml").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES
    assert lines[0].startswith("# ")


def test_every_component_says_what_it_is_for() -> None:
    for path in (K8S / "components").glob("*/kustomization.yaml"):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# ALPHA, off by default" if path.parent.name in ALPHA else "# "), path


def test_what_is_made_is_what_was_reviewed(base: list[Json]) -> None:
    assert base
    assert inventory.text() == inventory.PATH.read_text(encoding="utf-8"), (
        "look at the difference; where it is meant: python -m tests.k8s.inventory --write"
    )


def test_the_sweep_of_the_template_is_one() -> None:
    spec = load_spec(K8S / "components" / "rayjob" / "sweep.yaml")
    assert spec.method == "simpo"


def test_no_text_of_a_user_is_given_to_a_shell(rendered: Render) -> None:
    """KubeRay's submitter passes entrypoint, runtimeEnvYAML and metadata through a shell."""
    jobs = [thing for folder in folders() for thing in rendered(folder) if thing["kind"] == "RayJob"]
    assert jobs
    for job in jobs:
        assert re.fullmatch(r"[\w./: -]+", job["spec"]["entrypoint"]), name_of(job)
        assert not {"runtimeEnvYAML", "metadata", "entrypointResources"} & set(job["spec"]), name_of(job)
        assert {view.owner for view in pods([job])} >= {f"{name_of(job)} submitter"}
