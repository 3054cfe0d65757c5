"""Commands that are passed on to `python -m simpo`."""

import json
import subprocess
import sys
from pathlib import Path


def test_doctor_passes_its_options_and_exit_code_on(tmp_path: Path) -> None:
    rows = tmp_path / "pairs.jsonl"
    row = {"prompt": "Say yes.", "chosen": "yes", "rejected": "no"}
    rows.write_text(json.dumps(row) + "\n" + json.dumps({**row, "chosen": "no", "rejected": "yes"}) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", "from service.cli import main; main()", "doctor", str(rows), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["data"] == str(rows)
