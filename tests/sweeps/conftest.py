"""One small sweep, run once without any fault: what a sweep leaves, and what every disturbed one must come to."""

from pathlib import Path

import pytest

from sweeps.driver import run_attempt
from sweeps.run_dir import RunDir
from sweeps.spec import SweepSpec
from tests.sweeps.tiny import tiny_base, tiny_spec


@pytest.fixture(scope="session")
def spec(tmp_path_factory: pytest.TempPathFactory) -> SweepSpec:
    """Six trials of twelve steps, two at a time, with rungs at the steps 4 and 8."""
    base = tiny_base(tmp_path_factory.mktemp("base") / "model")
    return tiny_spec(base, budget={"trials": 6, "steps": 12}, parallel={"trials": 2})


@pytest.fixture(scope="session")
def undisturbed(spec: SweepSpec, tmp_path_factory: pytest.TempPathFactory, ray_cluster: str) -> Path:
    """Its run directory."""
    run = RunDir(tmp_path_factory.mktemp("undisturbed"))
    run.write_spec(spec.model_dump(mode="json"))
    run_attempt(run)
    return run.root
