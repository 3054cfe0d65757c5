"""The OpenAPI document is true: every operation is asked, with data that fits and data that does not."""

from pathlib import Path

from tests.service.contract.asking import ask


def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """All checks; examples, coverage, fuzzing, stateful; 90 quiet seconds at most. Longer: the command of `asking`."""
    done = ask(tmp_path, examples=1, seed=1, limit_s=900)
    assert done.returncode == 0, f"python -m tests.service.contract.asking\n{done.stdout}\n{done.stderr}"
