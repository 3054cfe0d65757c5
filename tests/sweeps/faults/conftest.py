"""A run directory for a sweep that will be disturbed."""

from pathlib import Path

import pytest

from sweeps.run_dir import RunDir
from sweeps.spec import SweepSpec


@pytest.fixture
def run(spec: SweepSpec, undisturbed: Path, tmp_path: Path) -> RunDir:
    """A run directory of the same sweep, still without an attempt."""
    run = RunDir(tmp_path / "run")
    run.write_spec(spec.model_dump(mode="json"))
    return run
