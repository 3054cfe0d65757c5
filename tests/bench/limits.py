"""What one sweep costs, measured small: the figures behind "Limits" in k8s/README.md.

    python -m tests.bench.limits          database, reconciler, Kubernetes objects: a minute
    python -m tests.bench.limits --ray    also a driver on a private Ray: memory, files written

Prints; k8s/README.md has the formulas that extrapolate.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from service.cluster import RayJobs, driver_env
from service.local_process import members
from service.settings import Settings
from service.store import Store
from tests.ray_head import private_head
from tests.service.conftest import Plane, make_plane
from tests.service.kube_double import KubeDouble
from tests.service.test_rayjobs import Stage

SPEC = {
    "name": "limits",
    "base_model": "practice",
    "dataset": "practice",
    "method": "simpo",
    "budget": {"trials": 4, "steps": 60},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray", action="store_true")
    logging.disable(logging.WARNING)
    if parser.parse_args().ray:
        driver()
    database()
    reconciler()
    objects()


def database(sweeps: int = 20) -> None:
    """Bytes of the database for a sweep, as a + b per trial."""
    sizes = {}
    for trials in (4, 16):
        with plane() as at_work:
            before = _size(at_work)
            for number in range(sweeps):
                _whole_sweep(at_work, f"s{number}", trials)
            sizes[trials] = (_size(at_work) - before) / sweeps
    slope = (sizes[16] - sizes[4]) / 12
    print(f"database: {sizes[4] - 4 * slope:,.0f} bytes a sweep and {slope:,.0f} a trial (three rungs each)")


def reconciler() -> None:
    """Seconds of an idle pass, as a + b per live sweep, and calls to Ray."""
    seconds = {}
    for live in (20, 120):
        with plane(max_running_sweeps=live) as at_work:
            ids = [at_work.post(f"s{number}")["id"] for number in range(live)]
            at_work.turn()
            for sweep_id in ids:
                at_work.drive(sweep_id).start()
            at_work.turn(2)
            at_work.jobs.calls.clear()
            began = time.perf_counter()
            for _ in range(5):
                at_work.reconciler.run_once()
            seconds[live] = (time.perf_counter() - began) / 5
            calls = len(at_work.jobs.calls) / 5
    slope = (seconds[120] - seconds[20]) / 100
    base = seconds[20] - 20 * slope
    print(
        f"reconciler: {base * 1e3:.1f} ms a pass and {slope * 1e3:.2f} ms a live sweep; {calls:g} calls to Ray a pass"
    )


def objects(jobs: int = 40) -> None:
    """Bytes of one RayJob in a LIST, and the seconds that reading a list takes."""
    with tempfile.TemporaryDirectory() as folder, KubeDouble() as kube:
        stage = Stage(kube, Path(folder))
        for number in range(jobs):
            stage.submit(f"swp-{number:02d}-a1")
        stage.ray.tick(4)
        size = sum(len(json.dumps(thing)) for thing in kube.all("rayjobs")) / (jobs + 1)
        began = time.perf_counter()
        stage.jobs.list()
        print(f"RayJob: {size:,.0f} bytes in a LIST, {(time.perf_counter() - began) / jobs * 1e3:.2f} ms each to read")


def driver() -> None:
    """Memory of a driver and of its supervisor, and what a small sweep writes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with private_head(folder / "ray.log") as (head, token):
            jobs = RayJobs(head.dashboard_url, token)
            (folder / "spec.json").write_text(json.dumps(SPEC), encoding="utf-8")
            out = folder / "run"
            began = time.monotonic()
            jobs.submit("limits-a1", f"{sys.executable} -m sweeps run {folder}/spec.json --out {out}", driver_env(15))
            most = {"driver": 0, "supervisor": 0}
            while (info := jobs.get("limits-a1")) is None or not info.terminal:
                for process in members(head.stack_id):
                    _note_memory(process, most)
                time.sleep(1.0)
            seconds = time.monotonic() - began
            assert info.status == "SUCCEEDED", info.message
            files = [path for path in out.rglob("*") if path.is_file()]
            segments = [path for path in files if path.parent.name == "journal"]
            beats = json.loads((out / "attempts/1/heartbeat.json").read_text(encoding="utf-8"))["counter"]
            size = sum(path.stat().st_size for path in files)
    print(f"driver: {most['driver'] >> 20} MiB at most, its supervisor {most['supervisor'] >> 20} MiB (PSS)")
    print(
        f"run directory: {len(segments)} segments and {beats} heartbeats in {seconds:.0f} s of {SPEC['budget']}; "
        f"{len(files)} files, {size / 1e6:.1f} MB in the end"
    )


@contextmanager
def plane(**changes: object) -> Iterator[Plane]:
    """A control plane on SQLite, everything around it fake."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = f"sqlite:///{folder / 'simpo.db'}"
        store = Store(url)
        store.migrate()
        store.close()
        settings = Settings(database_url=url, store=folder / "store", reconcile=False)
        yield from make_plane(settings, **changes)  # type: ignore[arg-type]


def _whole_sweep(at_work: Plane, name: str, trials: int) -> None:
    sweep_id = at_work.post(name)["id"]
    at_work.turn()
    driver = at_work.drive(sweep_id).start()
    for number in range(trials):
        driver.create(number)
        for step in (30, 60, 120):
            driver.rung(number, step, 0.5)
        driver.end(number, value=number / 100)
    driver.finish()
    at_work.jobs.become(f"{sweep_id.replace('_', '-')}-a1", "SUCCEEDED")
    at_work.turn(2)


def _size(at_work: Plane) -> int:
    with at_work.store.read() as session:
        connection = session.connection()
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        pages, size = (
            connection.exec_driver_sql(f"PRAGMA {name}").scalar() or 0 for name in ("page_count", "page_size")
        )
        return int(pages) * int(size)


def _note_memory(process: psutil.Process, most: dict[str, int]) -> None:
    try:
        words = " ".join(process.cmdline())
        kind = "driver" if "-m sweeps run" in words and "sh -c" not in words else ""
        kind = "supervisor" if "JobSupervisor" in words else kind
        if kind:
            most[kind] = max(most[kind], process.memory_full_info().pss)
    except psutil.Error:
        return


if __name__ == "__main__":
    main()
