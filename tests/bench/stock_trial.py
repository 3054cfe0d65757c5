"""One trial as a user of Ray Tune and TRL writes it: a process of its own, CPOTrainer, metrics told at each evaluation.

A module apart from the command: Ray then sends the function's name and not its text.
"""

import os
import warnings
from pathlib import Path
from typing import Any

from tests.bench.sweep_task import BATCH, Task, read_task


def stock_trial(config: dict[str, Any]) -> None:
    """One trial: everything from the imports to the last evaluation in a process of its own, as Tune does it."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    warnings.simplefilter("ignore")
    import torch  # noqa: PLC0415  # lazy: belongs to the trial's own time
    from datasets import disable_progress_bars, load_dataset  # noqa: PLC0415  # lazy: as above
    from ray import tune  # noqa: PLC0415  # lazy: as above
    from transformers import (  # noqa: PLC0415  # lazy: as above
        AutoModelForCausalLM,
        AutoTokenizer,
        TrainerCallback,
    )
    from transformers.utils import logging  # noqa: PLC0415  # lazy: as above
    from trl.experimental.cpo import CPOTrainer  # noqa: PLC0415  # lazy: as above

    disable_progress_bars()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    directory, point = Path(config["task"]), config["point"]
    task = read_task(directory)
    saved = Path(config["out"]) / "models" / tune.get_context().get_trial_id()
    measured = {*(task.rungs if config["rungs"] else ()), task.steps}

    class Measure(TrainerCallback):  # type: ignore[misc]  # transformers has no types
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            control.should_evaluate = state.global_step in measured

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **more: Any) -> None:
            if state.global_step == task.steps:
                trainer.save_model(str(saved))
            told = {"accuracy": metrics["eval_rewards/accuracies"], "step": state.global_step}
            tune.report({**told, "point": point, "saved": str(saved)})

    files = {split: str(directory / f"stock-{split}.jsonl") for split in ("train", "rungs")}
    rows = load_dataset("json", data_files=files, cache_dir=str(saved.parent / "cache"))
    trainer = CPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(directory / "base", dtype=torch.float32),
        args=_config(task, point, saved),
        train_dataset=rows["train"],
        eval_dataset=rows["rungs"],
        processing_class=AutoTokenizer.from_pretrained(directory / "base"),
        callbacks=[Measure()],
    )
    trainer.train()


def _config(task: Task, point: dict[str, float], out: Path) -> Any:
    from trl.experimental.cpo import CPOConfig  # noqa: PLC0415  # lazy: as above

    return CPOConfig(
        output_dir=str(out),
        loss_type="simpo",
        cpo_alpha=0.0,
        beta=point["beta"],
        simpo_gamma=point["beta"] * point["gamma_beta_ratio"],
        learning_rate=point["learning_rate"],
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=max(1, round(0.1 * task.steps)),
        max_steps=task.steps,
        max_length=4096,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        bf16=True,
        use_cpu=True,
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
