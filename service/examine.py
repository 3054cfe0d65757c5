"""The doctor at work on datasets: `python -m simpo doctor` in a process of its own, within limits of time and memory.

The control plane loads no torch, and rows of strangers are read elsewhere than here.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import select

from service import events
from service.clock import Clock
from service.datasets import file_of, lock_dataset
from service.local_process import inherited_mark
from service.models_data import Dataset
from service.settings import Settings
from service.states import DatasetState, Validation
from service.store import Store

_LOOK_S = 0.2
_MAX_REPORT = 8 * 1024 * 1024


class DoctorFailed(Exception):
    """No report could be made. One sentence."""


class Abandoned(Exception):
    """This process is to stop, or another one works on the datasets now."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What is to be looked at."""

    rows: Path
    eval: Path | None
    base_model: str | None
    names: dict[str, str]
    """Path -> id: what a report says in the path's place."""


class Doctor(Protocol):
    """Who makes reports. `wanted` says, often asked, whether anybody still waits."""

    def __call__(self, patient: Patient, wanted: Callable[[], bool]) -> dict[str, Any]:
        """The report. Raises DoctorFailed, Abandoned."""


class Examinations:
    """One pass over the datasets whose report is wished for. Used by one thread."""

    def __init__(self, store: Store, settings: Settings, clock: Clock, doctor: Doctor | None = None) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._doctor = doctor or process_doctor(
            timeout_s=settings.doctor_timeout_s, memory_bytes=settings.doctor_memory_mb << 20
        )

    def step(self, wanted: Callable[[], bool]) -> bool:
        """Make the oldest report that is wished for. True when there was one: another may wait.

        One that a lost process left RUNNING is made again: who has the lease works on them, and nobody else.
        """
        waiting = (Validation.PENDING, Validation.RUNNING)
        with self._store.read() as session:
            oldest = select(Dataset.id).where(Dataset.validation.in_(waiting)).order_by(Dataset.id).limit(1)
            dataset_id = session.scalar(oldest)
        if dataset_id is None:
            return False
        with self._store.write() as session:
            row = lock_dataset(session, dataset_id)
            request = row.validation_request or {}
            row.validation, row.validation_message = Validation.RUNNING, "The doctor looks at it."
            beside = session.get(Dataset, request["eval"]) if request.get("eval") else None
        try:
            report: dict[str, Any] | None = self._doctor(self._patient(row, beside, request), wanted)
            message = "Looked at."
        except (DoctorFailed, OSError, ValueError) as error:  # no process could be made, or what it said is no report
            report, message = None, str(error)
        except Abandoned:
            return False
        self._record(dataset_id, request, report, message)
        return True

    def _patient(self, row: Dataset, beside: Dataset | None, request: dict[str, Any]) -> Patient:
        rows = file_of(self._settings, row)
        evaluation = None if beside is None else file_of(self._settings, beside)
        names = {str(rows): row.id}
        if beside is not None:
            names[str(evaluation)] = beside.id
        return Patient(rows=rows, eval=evaluation, base_model=request.get("base_model"), names=names)

    def _record(self, dataset_id: str, request: dict[str, Any], report: dict[str, Any] | None, message: str) -> None:
        now = self._clock.now()
        with self._store.write() as session:
            row = lock_dataset(session, dataset_id)
            # Another wish may have come meanwhile, or the end: this answers neither.
            if row.state == DatasetState.DELETED or row.validation != Validation.RUNNING:
                return
            row.validation = Validation.SUCCEEDED if report else Validation.FAILED
            row.validation_message = message
            if report is None:
                events.append(session, row, "dataset.validation_failed", message, now=now, level="warn")
                return
            row.report, row.validated_at = report, now
            counts = report.get("counts", {})
            text = f"{counts.get('error', 0)} errors, {counts.get('warning', 0)} warnings."
            facts = {"ok": report["ok"], "counts": counts}
            level = "info" if report["ok"] else "warn"
            events.append(session, row, "dataset.validated", text, facts, now=now, level=level)


def process_doctor(*, timeout_s: float, memory_bytes: int) -> Doctor:
    """The real one. Its process has no secrets, no network of the hub, little memory, and an end."""

    def look(patient: Patient, wanted: Callable[[], bool]) -> dict[str, Any]:
        command = [sys.executable, "-m", "simpo", "doctor", str(patient.rows), "--json"]
        command += [f"--eval={patient.eval}"] if patient.eval is not None else []
        command += [f"--tokenizer={patient.base_model}"] if patient.base_model is not None else []
        code, out, err = run_limited(command, timeout_s=timeout_s, memory_bytes=memory_bytes, wanted=wanted)
        if code in (0, 1) and out.lstrip().startswith("{"):
            report: dict[str, Any] = _renamed(json.loads(out), patient.names)
            return report
        said = _renamed(" ".join(err.split()), patient.names)
        if code == 2 and said:
            return _unreadable(said)
        if "MemoryError" in err or code == -signal.SIGKILL:
            raise DoctorFailed(f"The doctor needed more than {memory_bytes >> 20} MiB: raise SIMPO_DOCTOR_MEMORY_MB.")
        last = _renamed((err.strip().splitlines() or ["no word"])[-1][:300], patient.names)
        raise DoctorFailed(f"The doctor ended with code {code}: {last}")

    return look


def run_limited(
    command: Sequence[str], *, timeout_s: float, memory_bytes: int, wanted: Callable[[], bool]
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a process that is ended after its time, or when nobody waits for it any more.

    Raises DoctorFailed: it took too long. Raises Abandoned.
    """
    with tempfile.TemporaryDirectory(prefix="simpo-doctor-") as home:
        out, err = Path(home) / "out", Path(home) / "err"
        env = {"HOME": home, "TMPDIR": home, "PATH": os.defpath, "COLUMNS": "10000", "OMP_NUM_THREADS": "1"}
        env |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUTF8": "1"}
        env |= inherited_mark()  # should this process be killed, `simpo down` finds the doctor
        with out.open("wb") as told, err.open("wb") as complained:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=complained,
                env=env,
                cwd=home,
                start_new_session=True,
            )
        try:
            _limit(process.pid, memory_bytes, timeout_s)
            deadline = time.monotonic() + timeout_s
            while process.poll() is None:
                if not wanted():
                    raise Abandoned
                if time.monotonic() > deadline:
                    raise DoctorFailed(f"The doctor took longer than {timeout_s:.0f} s: raise SIMPO_DOCTOR_TIMEOUT_S.")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return process.returncode, _text(out), _text(err)


def _limit(pid: int, memory_bytes: int, timeout_s: float) -> None:
    if not hasattr(resource, "prlimit"):  # Linux alone has it
        return
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        # Of an orphan, whose time nobody takes any more.
        resource.prlimit(pid, resource.RLIMIT_CPU, (int(timeout_s) + 1, int(timeout_s) + 1))
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (_MAX_REPORT, _MAX_REPORT))
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MAX_REPORT).decode("utf-8", "replace")


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """Paths stay inside: what the doctor said, with ids in their place."""
    if isinstance(value, str):
        for path, name in names.items():
            value = value.replace(path, name)
        return value
    if isinstance(value, list):
        return [_renamed(each, names) for each in value]
    return {key: _renamed(each, names) for key, each in value.items()} if isinstance(value, dict) else value


def _unreadable(said: str) -> dict[str, Any]:
    """A report on rows that are not preferences at all."""
    remedy = "rows have prompt, chosen and rejected, or OpenAI's input, preferred_output and non_preferred_output"
    seen = {"code": "unreadable", "level": "error", "message": said[:2000], "remedy": remedy, "count": 1, "rows": []}
    return {
        "ok": False,
        "rows": 0,
        "pairs": 0,
        "counts": {"error": 1, "warning": 0, "info": 0},
        "findings": [seen],
        "lengths": {},
        "truncation": {},
        "tokens": {},
    }
