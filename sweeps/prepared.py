"""What all trials share, on disk: made once by the driver, read once by every process that trains.

prepared.json            written last: counts, base, token policy
plan.safetensors         which pairs are in which step
reference.safetensors    reference log-probabilities, for methods that need them
rungs.safetensors/.json  held-out pairs and prompts of the rungs
report.safetensors/.json held-out pairs and prompts of the final report; no trial opens them
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from simpo.packing import PackedPlan, PairStore
from simpo.reference import Reference

BASE = "base"
"""Where a base model lies that was made for this sweep."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Pairs that nobody trains on, and prompts to answer."""

    pairs: PairStore
    """For accuracy and margin."""
    prompts: list[list[int]]
    """Token ids after which an answer begins."""
    instructions: list[str]
    """The same prompts as the judge reads them."""
    reference_lengths: list[int]
    """Tokens of the data's own chosen answers to these prompts."""
    chosen: list[str] = field(default_factory=list)
    """Those answers themselves: what a judge's controls take as good."""
    base_scores: list[float | None] | None = None
    """The judge's scores of the base model's answers to these prompts; None without a judge."""

    def save(self, stem: Path) -> None:
        """Write `<stem>.safetensors` and `<stem>.json`."""
        tensors = {"tokens": self.pairs.tokens, "lengths_N3": self.pairs.lengths_N3}
        save_file(tensors, f"{stem}.safetensors")
        texts = {key: value for key, value in vars(self).items() if key != "pairs"}
        Path(f"{stem}.json").write_text(json.dumps(texts), encoding="utf-8")

    @staticmethod
    def load(stem: Path) -> "HeldOut":
        """Read what `save` wrote."""
        tensors = load_file(f"{stem}.safetensors")
        texts: dict[str, Any] = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))
        return HeldOut(pairs=PairStore(tensors["tokens"], tensors["lengths_N3"]), **texts)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What prepared.json says."""

    spec_hash: str
    """Of the spec that this was made for."""
    base: str
    """Directory or hub id of the base model."""
    pairs: dict[str, int]
    """Usable pairs by split: train, rungs, report."""
    dropped: dict[str, int]
    """Rows left out, by reason, over all splits."""
    truncated: dict[str, int]
    """What was cut to max_length, by a key of simpo.truncate.TRUNCATIONS, over all splits; empty when nothing was."""
    stop_ids: list[int]
    """Token ids that end an answer."""
    reference: dict[str, Any] = field(default_factory=dict)
    """What reference log-probabilities took (simpo.reference.ReferenceCost); zeros for a method without them."""
    warnings: list[str] = field(default_factory=list)
    """What a person should know of how this was prepared."""


def save_facts(directory: Path, facts: Facts) -> None:
    """Seal a prepared directory: everything else in it must be written by now."""
    partial = directory / ".prepared.json"
    partial.write_text(json.dumps(asdict(facts), indent=1), encoding="utf-8")
    partial.replace(directory / "prepared.json")


def load_facts(directory: Path) -> Facts | None:
    """The facts of a sealed directory, or None."""
    try:
        facts = Facts(**json.loads((directory / "prepared.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    # A base that was made in here goes where the directory goes: to another machine, or with a moved run directory.
    moved = Path(facts.base).is_absolute() and not Path(facts.base).exists() and (directory / BASE).is_dir()
    return replace(facts, base=str(directory / BASE)) if moved else facts


def sealed_for(spec_hash: str, directories: Sequence[Path]) -> Path | None:
    """The first directory that was sealed for this spec: a predecessor's work is read from where it lies."""
    for directory in directories:
        facts = load_facts(directory)
        if facts is not None and facts.spec_hash == spec_hash:
            return directory
    return None


def load_plan(directory: Path) -> PackedPlan:
    """The packed plan of a prepared directory."""
    return PackedPlan.load(directory / "plan.safetensors")


def load_reference(directory: Path) -> Reference | None:
    """The reference log-probabilities, if the method needs them."""
    path = directory / "reference.safetensors"
    return Reference.load(path) if path.exists() else None
