"""The two sides of an evaluation: the same held-out rows, each model through its own tokenizer and token policy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simpo.checkpoint import MANIFEST, read_manifest
from simpo.config import TokenPolicy
from simpo.errors import DataError
from simpo.evaluation.capability import CapabilityItem
from simpo.evaluation.evidence import Behaviour
from simpo.generate import Generation, generate
from simpo.model import load_model, load_tokenizer
from simpo.packing import PairStore, TokenPair
from simpo.policy_hash import honoured_policy
from simpo.records import Preference
from simpo.scores import score_pairs
from simpo.tokenize import encode_prompt, stop_token_ids, tokenize_preferences
from sweeps.prepare import read_splits
from sweeps.spec import SweepSpec

EVALUATION_SEED = 4
"""Of sampling, apart from the rungs' and the finals' seeds: an evaluation is a fresh look."""


def held_out_rows(sweep: SweepSpec, directory: Path, most: int) -> list[Preference]:
    """Up to `most` rows of the sweep's report split: nobody trained on them, and they chose nobody. Raises DataError.

    directory: where the practice task writes its files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    wanted = sweep.model_copy(update={"finals": sweep.finals.model_copy(update={"prompts": most})})
    return read_splits(wanted, directory).report


@dataclass(kw_only=True)
class Side:
    """One model: what it says, and how likely it finds the data. Loaded for the length of a look, no longer."""

    source: str
    """Checkpoint directory or hub id."""
    sweep: SweepSpec
    """Whose settings count."""
    tokenizer: Any = field(init=False)
    """Its own."""
    policy: TokenPolicy = field(init=False)
    """Of its manifest; of the sweep where it has none."""
    generations: list[Generation] = field(default_factory=list)
    """Answers to the first prompts, as many as were asked for so far."""

    def __post_init__(self) -> None:
        manifest = read_manifest(self.source) if (Path(self.source) / MANIFEST).is_file() else None
        template = self.sweep.tokens.chat_template if manifest is None else None
        self.tokenizer = load_tokenizer(self.source, chat_template=template)
        self.policy = self.sweep.tokens if manifest is None else honoured_policy(manifest, self.tokenizer)

    def load(self) -> Any:
        """The model, ready to generate."""
        return load_model(self.source, dtype=self.sweep.train.dtype)

    def usable(self, rows: Sequence[Preference]) -> set[int]:
        """Indices of the rows that become pairs under its policy."""
        return set(tokenize_preferences(rows, self.tokenizer, self.policy).rows)

    def pairs(self, rows: Sequence[Preference]) -> list[TokenPair]:
        """All of these usable rows. Raises DataError when one is dropped after all."""
        tokenized = tokenize_preferences(rows, self.tokenizer, self.policy)
        if len(tokenized.pairs) != len(rows):
            raise DataError(f"{self.source} drops held-out rows: {tokenized.dropped}")
        return tokenized.pairs

    def scores(self, model: Any, pairs: Sequence[TokenPair]) -> Any:
        """Log-probabilities of the pairs."""
        return score_pairs(model, PairStore.of(list(pairs)).evaluation_batches(self.sweep.train.token_budget))

    def answer(self, model: Any, rows: Sequence[Preference]) -> None:
        """Answer those of the rows that it has not answered yet."""
        start = len(self.generations)
        seed = self.sweep.seed + EVALUATION_SEED + start
        self.generations += self.sampled(model, [row.prompt for row in rows[start:]], seed=seed)

    def sampled(self, model: Any, prompts: Sequence[Any], *, seed: int, greedy: bool = False) -> list[Generation]:
        """One answer a prompt, with the sweep's settings; greedy for what has one right answer."""
        if not prompts:
            return []
        settings = self.sweep.evaluation
        return generate(
            model,
            self.tokenizer,
            [encode_prompt(_turns(prompt), self.tokenizer, self.policy) for prompt in prompts],
            max_new_tokens=settings.max_new_tokens,
            stop_ids=stop_token_ids(self.tokenizer, self.policy),
            temperature=0.0 if greedy else settings.temperature,
            seed=seed,
        )

    def passed(self, model: Any, items: Sequence[CapabilityItem]) -> list[bool]:
        """Which items of a capability set it answers right."""
        said = self.sampled(model, [item.prompt for item in items], seed=0, greedy=True)
        return [item.is_right(each.text) for item, each in zip(items, said, strict=True)]

    def behaviour(self, scores: Any, right: Sequence[bool] | None) -> Behaviour:
        """What evidence is made of."""
        return Behaviour(generations=self.generations, scores=scores, right=right)


def _turns(prompt: Any) -> Any:
    return prompt if isinstance(prompt, str) else list(prompt)
