"""The quickstart for real, scaled down: a private Ray, the API, a sweep, two deployments, a report; nothing is left."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from service.local_ray import OBJECT_STORE_BYTES
from simpo.practice_task import Split, examples
from tests.e2e.processes import Watcher, run, simpo
from tests.serving.tiny import tiny_checkpoint

pytestmark = pytest.mark.e2e


def test_from_nothing_to_a_report(tmp_path: Path) -> None:
    home = tmp_path / "q"
    with Watcher(home) as watcher:
        done = run(simpo("quickstart", "--home", str(home), "--trials", "3", "--steps", "12"), timeout_s=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(watcher.seen) > 5, "the stack was seen running"
    assert watcher.left() == []
    assert not (home / "stack.json").exists()

    report = json.loads((home / "report.json").read_text())
    assert sum(report["trials"].values()) == 3
    assert report["best"]["method"] == "simpo"
    assert {"learning_rate", "beta", "gamma_beta_ratio"} <= set(report["best"]["hyperparameters"])
    assert report["win_rate"]["n"] >= 500
    for estimate in (report["win_rate"], report["accuracy"]["base"], report["accuracy"]["winner"]):
        assert 0 <= estimate["low"] <= estimate["estimate"] <= estimate["high"] <= 1
    phases = ["starting", "submitting", "preparing", "searching", "finals", "deploying", "answering", "total"]
    assert list(report["seconds"]) == phases
    assert 2 * OBJECT_STORE_BYTES < report["peak_memory_bytes"] < 10 << 30
    assert report["seed"] == 0 and report["versions"]["ray"]
    assert len(report["answers"]) == 3
    assert all(answer["prompt"] and answer["base"] + answer["winner"] for answer in report["answers"])
    assert (home / "report.html").stat().st_size > 1_000_000
    for shown in ("preparing", "searching", "trial 2:", "best so far", "winner is READY", "report.html"):
        assert shown in done.stdout
    assert done.stderr == ""


def test_own_preferences_take_the_same_path(tmp_path: Path) -> None:
    train, held_out = (_preferences(tmp_path / f"{split}.jsonl", split) for split in ("train", "eval"))
    home = tmp_path / "q"
    sources = ["--data", str(train), "--eval", str(held_out)]
    with Watcher(home) as watcher:
        done = run(simpo("quickstart", "--home", str(home), *sources, "--trials", "2", "--steps", "8"), timeout_s=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert watcher.seen and watcher.left() == []
    report = json.loads((home / "report.json").read_text())
    assert report["win_rate"] is None and "no judge" in report["win_rate_reason"]
    assert [report["accuracy"][who]["n"] for who in ("base", "winner")] == [40, 40]
    assert report["dropped_rows"] == {"identical_responses": 2}
    asked = [json.loads(line)["prompt"][0]["content"] for line in held_out.read_text().splitlines()]
    assert [answer["prompt"] for answer in report["answers"]] == asked[1:4]


def _preferences(path: Path, split: Split) -> Path:
    """A file of a person's own: one unusable row, then 40 (eval) or 120 (train) good ones."""
    rows = [("?", "same", "same")]
    found = examples(split, 120 if split == "train" else 40, seed=1, longer_share=0.0)
    rows += [(row.instruction, row.chosen, row.rejected) for row in found]
    with path.open("w", encoding="utf-8") as file:
        for prompt, chosen, rejected in rows:
            said = {"chosen": chosen, "rejected": rejected}
            turns = {key: [{"role": "assistant", "content": text}] for key, text in said.items()}
            file.write(json.dumps({"prompt": [{"role": "user", "content": prompt}], **turns}) + "\n")
    return path


def test_ctrl_c_stops_everything(tmp_path: Path) -> None:
    home = tmp_path / "q"
    with Watcher(home) as watcher:
        process = subprocess.Popen(
            simpo("quickstart", "--home", str(home)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if "preparing" in line:
                    break
            time.sleep(2.0)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=240)
        finally:
            process.kill()
            run(simpo("down", "--home", str(home)), timeout_s=300)  # nothing to do, unless it was killed
    assert process.returncode == 130, out + err
    assert "stopping everything" in out and "Traceback" not in err
    assert watcher.seen and watcher.left() == []


def test_a_sweep_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    home = tmp_path / "q"
    with Watcher(home) as watcher:
        done = run(simpo("quickstart", "--home", str(home), "--model", str(model), "--steps", "8"), timeout_s=900)
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: the sweep is FAILED: ") and f"(logs: {home / 'logs'})" in last
    assert "Traceback" not in done.stderr
    assert watcher.seen and watcher.left() == []
