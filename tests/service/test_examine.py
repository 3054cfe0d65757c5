"""The doctor as a real process: its report, what it says of rows that are none, and its limits."""

import json
import sys
from pathlib import Path

import pytest

from service.examine import Abandoned, Doctor, DoctorFailed, Patient, process_doctor, run_limited

GIB = 1 << 30


@pytest.fixture
def doctor() -> Doctor:
    return process_doctor(timeout_s=300, memory_bytes=4 * GIB)


def patient(path: Path, text: str) -> Patient:
    path.write_text(text)
    return Patient(rows=path, eval=path, base_model=None, names={str(path): "dst_1"})


def test_a_report_speaks_of_ids_not_of_paths(doctor: Doctor, tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": "no"} for n in range(3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    report = doctor(patient(tmp_path / "rows.jsonl", text), lambda: True)
    assert (report["rows"], report["pairs"], report["data"], report["eval"]) == (3, 3, "dst_1", "dst_1")
    assert not report["ok"], "every prompt of the evaluation is trained on"
    assert str(tmp_path) not in json.dumps(report)


def test_rows_that_are_no_preferences_are_a_report_too(doctor: Doctor, tmp_path: Path) -> None:
    report = doctor(patient(tmp_path / "rows.jsonl", '{"text": "no pair"}\n'), lambda: True)
    (seen,) = report["findings"]
    assert not report["ok"] and seen["code"] == "unreadable" and "chosen" in seen["message"], report
    assert "dst_1" in seen["message"] and str(tmp_path) not in seen["message"]


def test_a_process_ends_at_its_limits() -> None:
    def limited(program: str, *, timeout_s: float = 300, wanted: bool = True) -> tuple[int, str, str]:
        command = [sys.executable, "-c", program]
        return run_limited(command, timeout_s=timeout_s, memory_bytes=GIB // 2, wanted=lambda: wanted)

    code, out, _ = limited("import os; print(sorted(os.environ), os.getcwd() == os.environ['HOME'])")
    assert code == 0 and "SIMPO" not in out and out.endswith("True\n")
    set_ = f"resource.getrlimit(resource.RLIMIT_AS)[0] == {GIB // 2}"  # from outside, a moment after it has begun
    code, _, err = limited(f"import resource\nwhile not {set_}: pass\nbytearray(1 << 30)")
    assert code == 1 and "MemoryError" in err
    with pytest.raises(DoctorFailed, match="longer than 0 s"):
        limited("import time; time.sleep(600)", timeout_s=0)
    with pytest.raises(Abandoned):
        limited("import time; time.sleep(600)", wanted=False)
