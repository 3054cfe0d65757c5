"""The OpenAPI document is true: every operation is asked, with data that fits and data that does not."""

from pathlib import Path

import pytest

from tests.service.contract.asking import ask


def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """All checks; examples, coverage, fuzzing, stateful; 90 quiet seconds at most. Longer: the command of `asking`."""
    done = ask(tmp_path, examples=1, seed=1, limit_s=900)
    assert done.returncode == 0, f"python -m tests.service.contract.asking\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("kind", ["sweeps", "runs", "projects", "datasets", "comparisons"])
def test_walks_from_what_was_made_find_nothing(tmp_path: Path, kind: str) -> None:
    """POST, then what its answer's links lead to, in any order: each kind for itself, or a walk never comes to it."""
    words = ["--phases", "stateful", "--include-path-regex", f"^/v1/{kind}"]
    done = ask(tmp_path, examples=16, seed=17, more=words, limit_s=600)
    told = f"python -m tests.service.contract.asking --examples 16 --seed 17 -- {' '.join(words)}"
    assert done.returncode == 0, f"{told}\n{done.stdout}\n{done.stderr}"
    assert " 0 covered" not in done.stdout, done.stdout
