"""What one training process keeps between trials: data, tokenizer, model, the weights that each trial begins with."""

import gc
from pathlib import Path
from typing import Any

import torch
import transformers

from simpo.lora import add_lora
from simpo.model import load_model, load_tokenizer
from simpo.sharding import shard_model
from sweeps.prepared import HeldOut, load_facts, load_plan, load_reference
from sweeps.replicate import Orders
from sweeps.run_dir import RunDir
from sweeps.spec import SweepSpec, parse_spec
from sweeps.working_copy import place_of


class Workbench:
    """One process's."""

    def __init__(self, run_dir: str, prepared: str, store: str | None = None) -> None:
        """store: what `run_dir` is a working copy of, if of anything; spec and `prepared` are fetched from there."""
        self.place = place_of(store, Path(run_dir))
        if not RunDir(run_dir).spec_path.exists():
            self.place.refresh()
        self.place.pull_prepared(Path(prepared))
        self.spec: SweepSpec = parse_spec(RunDir(run_dir).read_spec())
        quiet_transformers()
        directory = Path(prepared)
        facts = load_facts(directory)
        assert facts is not None, f"{directory} is not sealed"
        self.facts = facts
        self.orders = Orders(self.spec.seed, load_plan(directory), load_reference(directory))
        self.rungs = HeldOut.load(directory / "rungs")
        self.tokenizer = load_tokenizer(facts.base, chat_template=self.spec.tokens.chat_template)
        self.model = load_model(facts.base, dtype=self.spec.train.dtype)
        if self.spec.train.lora is not None:
            add_lora(self.model, self.spec.train.lora)
        shard_model(self.model, self.spec.train.sharding)
        # With an adapter that is the adapter alone: all trials of this process share the frozen base.
        self._first_weights = {
            name: weight.detach().clone() for name, weight in self.model.named_parameters() if weight.requires_grad
        }
        # What libraries made stays: collecting after a trial then looks at the trial's own objects, not at a million.
        gc.collect()
        gc.freeze()

    def fresh_model(self) -> Any:
        """The one model of this process, with the weights that every trial begins with."""
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if name in self._first_weights:
                    weight.copy_(self._first_weights[name])
                weight.grad = None
        return self.model


def quiet_transformers() -> None:
    """No progress bars: a line for each of a hundred small checkpoints says nothing."""
    transformers.utils.logging.disable_progress_bar()
