"""A pair over max_length, cut by a published rule. Pure functions on token ids; tokenize.py counts what they did.

    drop       nothing is cut: the pair is left out
    reference  prompt + longer response > max_length: the prompt keeps its last max_prompt_length tokens; if that is not
               enough, BOTH responses keep their first max_length - max_prompt_length, however short the prompt is
               (princeton-nlp/SimPO, scripts/simpo_trainer.py, tokenize_row)
    trl        each response keeps its first max(0, max_length - |prompt|); the prompt is never cut
               (TRL 1.16, trl/experimental/cpo/cpo_trainer.py, tokenize_row)

One thing differs from the authors' code: a prompt that is cut keeps its BOS. Theirs loses it, which breaks the rule
that training and serving both begin with exactly one.
"""

from collections.abc import Mapping
from typing import NamedTuple

from simpo.config import TokenPolicy
from simpo.packing import TokenPair

TRUNCATIONS: Mapping[str, str] = {
    "pairs": "pairs over max_length that were cut and kept",
    "prompts_cut": "of these, prompts that lost their beginning",
    "chosen_without_end": "of these, chosen responses that lost their last tokens, the end token among them",
    "rejected_without_end": "of these, rejected responses that lost their last tokens, the end token among them",
}
"""What is counted about pairs that were cut: the key, and a sentence for people."""


class Cut(NamedTuple):
    """What a rule left of a pair, and how many tokens each part lost. A response may be empty now."""

    pair: TokenPair
    prompt_lost: int
    chosen_lost: int
    rejected_lost: int

    def counts(self) -> dict[str, int]:
        """Keys of TRUNCATIONS that this pair adds one to; empty when nothing was cut."""
        flags = {
            "prompts_cut": self.prompt_lost > 0,
            "chosen_without_end": self.chosen_lost > 0,
            "rejected_without_end": self.rejected_lost > 0,
        }
        hit = {key: 1 for key, cut in flags.items() if cut}
        return {"pairs": 1, **hit} if hit else {}


def truncate(pair: TokenPair, policy: TokenPolicy, bos: int | None) -> Cut | None:
    """The pair within max_length under the policy's rule; None where the rule is to leave it out.

    bos: the id that a cut prompt keeps in front if it began with it; None for tokenizers that have none.
    """
    prompt, chosen, rejected = pair
    longer = max(len(chosen), len(rejected))
    if len(prompt) + longer <= policy.max_length:
        return Cut(pair, 0, 0, 0)
    if policy.truncation == "drop":
        return None
    if policy.truncation == "trl":
        room = max(0, policy.max_length - len(prompt))
    else:
        assert policy.max_prompt_length is not None  # TokenPolicy refuses anything else
        prompt = cut_prompt(prompt, policy.max_prompt_length, bos)
        enough = len(prompt) + longer <= policy.max_length
        room = longer if enough else policy.max_length - policy.max_prompt_length
    kept = TokenPair(prompt, chosen[:room], rejected[:room])
    return Cut(kept, *(len(before) - len(after) for before, after in zip(pair, kept, strict=True)))


def cut_prompt(prompt: list[int], limit: int, bos: int | None) -> list[int]:
    """The last `limit` tokens; a leading BOS stays, so that `limit` - 1 others are kept."""
    if len(prompt) <= limit:
        return prompt
    head = [bos] if bos is not None and prompt[0] == bos else []
    return head + prompt[len(prompt) - limit + len(head) :]
