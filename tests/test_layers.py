"""Who may know whom: simpo <- sweeps <- service, a control plane that starts light, and no hidden arrows."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

from simpo.methods import METHODS
from tests.house import PACKAGES, REPO, Source, sources

pytestmark = pytest.mark.quick

FORBIDDEN: Mapping[str, frozenset[str]] = {
    "simpo": frozenset(
        {
            "sweeps",
            "service",
            "tests",
            "trl",
            "ray",
            "optuna",
            "pydantic",
            "fastapi",
            "starlette",
            "httpx",
            "sqlalchemy",
        }
    ),
    "sweeps": frozenset({"service", "tests", "trl", "fastapi", "starlette", "sqlalchemy", "ray.serve"}),
    "service": frozenset({"tests", "trl", "ray", "torch", "transformers", "datasets", "optuna"}),
}
"""What a package may not import, not even lazily."""
DATA_PLANE = "service/serving/"  # runs inside Ray Serve: may import Ray, torch and simpo whole

HEAVY = ("torch", "transformers", "datasets", "optuna", "ray", "kubernetes")
LIGHT_BELOW = (  # what the control plane may import from the layers below, and so must be as light as itself
    *("simpo.config", "simpo.errors", "sweeps.spec", "sweeps.spaces", "sweeps.run_dir", "sweeps.budget"),
)
METHOD_TABLES = {"simpo/methods.py", "simpo/objectives.py"}


# -- arrows


def arrows(source: Source) -> Iterator[str]:
    """Imports against the layers."""
    forbidden = FORBIDDEN[source.package]
    if source.path.startswith(DATA_PLANE):
        forbidden = frozenset({"tests", "trl"})
    for item in source.imports:
        hit = next((name for name in forbidden if f"{item.name}.".startswith(f"{name}.")), None)
        if hit:
            yield f"{source.path}:{item.line}: {source.package} must not import {hit}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"{source.path}:{node.lineno}: write imports absolutely"


def test_imports_point_one_way() -> None:
    assert [text for source in sources() for text in arrows(source)] == []


@pytest.mark.parametrize(
    ("path", "text", "finding"),
    [
        ("simpo/a.py", "from sweeps.spec import SweepSpec", "simpo must not import sweeps"),
        ("simpo/a.py", "def f():\n    import ray.train", "simpo must not import ray"),
        ("sweeps/a.py", "from ray import serve", "sweeps must not import ray.serve"),
        ("service/a.py", "import torch.nn", "service must not import torch"),
        ("simpo/a.py", "from . import config", "write imports absolutely"),
        ("simpo/a.py", "import raylib, optunahub", None),
        ("sweeps/a.py", "from ray import tune", None),
        ("service/serving/app.py", "from ray import serve", None),
    ],
)
def test_an_arrow_against_the_layers_is_found(path: str, text: str, finding: str | None) -> None:
    found = list(arrows(Source(path, text)))
    assert len(found) == (1 if finding else 0), found
    assert not finding or finding in found[0]


def test_the_import_contracts_hold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPO)
    status = lint_imports(no_cache=True, no_logo=True)
    assert status == 0, capsys.readouterr().out


# -- lazy imports


def unexplained_lazy_imports(source: Source) -> Iterator[str]:
    """Imports inside a function whose line does not say why."""
    for item in source.imports:
        reason = source.lines[item.line - 1].partition("# lazy:")[2].strip()
        if item.lazy and not reason:
            yield f"{source.path}:{item.line}: move the import to the top, or end its line with `# lazy: <reason>`"


def test_lazy_imports_carry_their_reason() -> None:
    assert sorted({text for source in sources() for text in unexplained_lazy_imports(source)}) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("def f():\n    import torch", 1),
        ("class A:\n    def f(self):\n        from torch import nn  # lazy:", 1),
        ("def f():\n    import torch  # noqa: PLC0415  # lazy: two seconds", 0),
        ("import torch\ntry:\n    import numpy\nexcept ImportError:\n    numpy = None", 0),
    ],
)
def test_an_unexplained_lazy_import_is_found(text: str, count: int) -> None:
    assert len(list(unexplained_lazy_imports(Source("simpo/a.py", text)))) == count


# -- the control plane is light


def light_modules() -> list[str]:
    """Every module that must load none of HEAVY: the control plane, and what it imports from below."""
    control_plane = [
        source.module
        for source in sources("service")
        if not source.path.startswith(DATA_PLANE) or source.module == "service.serving.deployer"
    ]
    return [*LIGHT_BELOW, *control_plane]


def heavy_chains(modules: list[str], known: Mapping[str, Source]) -> Iterator[str]:
    """Chains of eager imports that lead from one of `modules` to something heavy."""
    for start in modules:
        seen, queue = {start}, [(start, [start])]
        while queue:
            module, chain = queue.pop(0)
            for item in known[module].imports if module in known else ():
                if item.lazy or item.typing_only:
                    continue
                if item.name.partition(".")[0] in HEAVY:
                    yield " -> ".join([*chain, item.name])
                target = item.name if item.name in known else item.name.rpartition(".")[0]
                if target in known and target not in seen:
                    seen.add(target)
                    queue.append((target, [*chain, target]))


def test_no_chain_of_imports_makes_the_control_plane_heavy() -> None:
    known = {source.module: source for source in sources()}
    assert list(heavy_chains(light_modules(), known)) == []


def test_a_heavy_chain_is_found() -> None:
    texts = {
        "service.app": "from simpo import fit",
        "service.lazy": "def f():\n    import torch",
        "simpo.fit": "from simpo.model import load_model\nfrom typing import TYPE_CHECKING",
        "simpo.model": "import torch.nn",
        "simpo.typed": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
    }
    known = {module: Source(f"{module.replace('.', '/')}.py", text) for module, text in texts.items()}
    assert list(heavy_chains(["service.app"], known)) == ["service.app -> simpo.fit -> simpo.model -> torch.nn"]
    assert list(heavy_chains(["service.lazy", "simpo.typed"], known)) == []


def test_a_fresh_process_that_imports_the_control_plane_has_nothing_heavy_loaded() -> None:
    program = (
        "import importlib, json, sys\n"
        "modules, heavy = json.loads(sys.argv[1])\n"
        "for module in modules:\n"
        "    importlib.import_module(module)\n"
        "    found = [name for name in heavy if name in sys.modules]\n"
        "    assert not found, f'{module} loads {found}'\n"
    )
    # Without what a test run adds: only the project, warnings as errors.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SIMPO_", "RAY_", "PYTEST"))}
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, json.dumps([light_modules(), HEAVY])],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=REPO,
        env=environment,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]


# -- names of methods


def method_comparisons(source: Source, names: frozenset[str]) -> Iterator[str]:
    """Places that treat one method unlike another by its name: comparisons, matches, tables keyed by names."""
    if source.path in METHOD_TABLES:
        return
    for node in ast.walk(source.tree):
        words: list[ast.expr | None] = []
        if isinstance(node, ast.Compare):
            words = [part for side in (node.left, *node.comparators) for part in _members(side)]
        elif isinstance(node, ast.MatchValue):
            words = [node.value]
        elif isinstance(node, ast.Dict):
            words = list(node.keys)
        elif isinstance(node, ast.Subscript):
            words = [node.slice]
        for word in words:
            if isinstance(word, ast.Constant) and word.value in names:
                yield f"{source.path}:{word.lineno}: {word.value!r}: make the fact a field of the method's config"


def _members(side: ast.expr) -> list[ast.expr]:
    return side.elts if isinstance(side, ast.Set | ast.List | ast.Tuple) else [side]


def test_no_method_is_treated_by_its_name() -> None:
    names = frozenset(METHODS)
    assert [text for source in sources() for text in method_comparisons(source, names)] == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("if method.name == 'simpo': pass", 1),
        ("needs = name in {'dpo', 'ipo'}", 1),
        ("match name:\n    case 'dpo':\n        pass", 1),
        ("titles = {'simpo': 'SimPO'}", 1),
        ("space = SPACES['dpo']", 1),
        ("method: str = 'simpo'", 0),
        ("if name in METHODS: pass", 0),
    ],
)
def test_a_comparison_with_a_method_name_is_found(text: str, count: int) -> None:
    names = frozenset({"simpo", "dpo"})
    assert len(list(method_comparisons(Source("sweeps/a.py", text), names))) == count
    assert list(method_comparisons(Source("simpo/objectives.py", text), names)) == []


def test_the_packages_are_the_ones_on_disk() -> None:
    on_disk = {path.parent.name for path in Path(REPO).glob("*/__init__.py")}
    assert on_disk == {*PACKAGES, "tests"}
