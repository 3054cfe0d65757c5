"""A trial of several workers: a Tune function that waits, and a Ray Train group that trains."""

import json
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from simpo.memory import keep_freed_pages
from sweeps.trial import Assignment, train_trial, workbench

DRIVER_CPUS = 0.01
"""What the waiting Tune function holds: a whole core each would starve the workers for ever, 0 is refused by Tune."""


def run_worker_trial(config: dict[str, Any]) -> None:
    """The function that Tune calls. The last report of rank 0 is the trial's last word."""
    assignment, gpus = Assignment.from_config(config), config["gpus"]
    TorchTrainer(
        _loop,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=assignment.workers, use_gpu=gpus > 0, resources_per_worker={"CPU": 1, "GPU": gpus}
        ),
        run_config=ray.train.RunConfig(
            # A used name would resume from a stranger's checkpoint.
            name=f"train-{assignment.trial_id}",
            storage_path=str(Path(assignment.directory).parent.parent),
            callbacks=[TuneReportCallback()],
            failure_config=ray.train.FailureConfig(max_failures=2, controller_failure_limit=3),
        ),
    ).fit()


def _loop(config: dict[str, Any]) -> None:
    """One rank. Every rank reports every update: Train takes rank 0's metrics once all have spoken."""
    keep_freed_pages()
    torch.set_num_threads(1)
    assignment = Assignment.from_config(config)
    for update in train_trial(workbench(assignment), assignment):
        ray.train.report(json.loads(json.dumps(update.as_result())))
