"""Prompts that are read together: each gets what it would get alone, in fewer passes, and its prefix is kept."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from service.serving.engines import batching
from service.serving.engines.base import EngineError, Piece, Sampling
from service.serving.engines.batching import PREFILL_TOKENS, Batch
from service.serving.engines.grouped import serving_attention
from service.serving.engines.rows import Request, Row, Voice
from service.serving.engines.transformers import Tokens
from simpo.config import TokenPolicy
from tests.serving.tiny import BOS, EOS, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.quick

VOICE = Tokens(tiny_tokenizer(), TokenPolicy()).voice()
SCORED = Sampling(max_new_tokens=6, temperature=0, top_logprobs=3, logit_bias={EOS: -100.0})


class Counted:
    """A batch over a model, and the shapes of its passes."""

    def __init__(self, model: Any) -> None:
        model.set_attn_implementation(serving_attention(model.config))
        self.passes: list[tuple[int, int]] = []
        forward = model.forward

        def counted(**inputs: Any) -> Any:
            self.passes.append(tuple(inputs["input_ids"].shape))
            return forward(**inputs)

        model.forward = counted
        self.batch = Batch(model, lambda adapters: None, lambda: None)

    def answers(self, *groups: Sequence[Request]) -> None:
        """Groups join one after another; then all are answered."""
        for group in groups:
            self.batch.join(group)
        while len(self.batch):
            self.batch.step()

    @property
    def prefills(self) -> list[tuple[int, int]]:
        """(rows, columns)"""
        return [shape for shape in self.passes if shape[1] > 1]


class Asked(Request):
    """A request that keeps what it is given."""

    def __init__(self, prompt_ids: Sequence[int], sampling: Sampling = SCORED, voice: Voice = VOICE) -> None:
        self.given: list[Piece | EngineError] = []
        super().__init__(prompt_ids, sampling, voice, self.given.append)

    @property
    def text(self) -> str:
        """All of it."""
        assert all(isinstance(piece, Piece) for piece in self.given), self.given
        return "".join(piece.text for piece in self.given if isinstance(piece, Piece))

    @property
    def logprobs(self) -> list[float]:
        """Of its tokens and of the likeliest in their places."""
        scores = [score for piece in self.given if isinstance(piece, Piece) for score in piece.scores]
        return [one.logprob or 0.0 for score in scores for one in (score, *score.top)]


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """So long each, all beginning differently."""
    draw = torch.Generator().manual_seed(seed)
    return [
        [BOS, number, *torch.randint(0, 255, (length - 2,), generator=draw).tolist()]
        for number, length in enumerate(lengths)
    ]


def windowed() -> Gemma2ForCausalLM:
    """Soft caps, and windows that are shorter than the prompts."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=5,
        initializer_range=0.4,
        max_position_embeddings=96,
    )
    return Gemma2ForCausalLM(config).eval()


@pytest.mark.parametrize("make", [tiny_model, windowed], ids=["llama", "gemma-2"])
@pytest.mark.parametrize("lengths", [(3, 3), (2, 17, 9, 17, 3), (60, 2)])
def test_together_as_alone(make: Any, lengths: Sequence[int]) -> None:
    together, alone = [[Asked(ids) for ids in prompts(*lengths)] for _ in range(2)]
    counted = Counted(make())
    counted.answers(together)
    assert counted.prefills == [(len(lengths), max(lengths))]
    for one in alone:
        Counted(make()).answers([one])
    for mine, other in zip(together, alone, strict=True):
        assert mine.text == other.text and len(mine.given) >= 1
        assert mine.logprobs == pytest.approx(other.logprobs, abs=2e-4)


def test_a_group_joins_those_who_are_being_answered() -> None:
    first, *later = prompts(20, 5, 30, 8)
    alone = [Asked(ids) for ids in (first, *later)]
    for one in alone:
        Counted(tiny_model()).answers([one])
    counted = Counted(tiny_model())
    crowd = [Asked(first), *map(Asked, later)]
    counted.batch.join(crowd[:1])
    counted.batch.step()
    counted.answers(crowd[1:])
    assert [one.text for one in crowd] == [one.text for one in alone]
    assert counted.prefills == [(1, 20), (3, 30)]


def test_who_is_done_at_once_leaves_no_row() -> None:
    once = Sampling(max_new_tokens=1, temperature=0)
    short, long = prompts(4, 20)
    alone, counted = Asked(short), Counted(tiny_model())
    Counted(tiny_model()).answers([alone])
    crowd = [Asked(long, once), Asked(short)]
    counted.batch.join(crowd)
    assert len(counted.batch) == 1 and len(crowd[0].given) == 1
    assert counted.batch._cache.get_seq_length() == 4, "the padding left with it"
    counted.answers()
    assert crowd[1].text == alone.text


def test_those_of_like_lengths_are_read_together() -> None:
    counted = Counted(tiny_model())
    crowd, alone = [[Asked(ids) for ids in prompts(4, 80, 5, 78, 10, 4)] for _ in range(2)]
    counted.answers(crowd)
    assert counted.prefills == [(4, 10), (2, 80)]
    for one in alone:
        Counted(tiny_model()).answers([one])
    assert [one.text for one in crowd] == [one.text for one in alone]


def test_a_prompt_of_many_pieces_is_read_alone() -> None:
    long = PREFILL_TOKENS - 6
    counted = Counted(tiny_model(max_position_embeddings=4 * PREFILL_TOKENS))
    counted.answers([Asked(ids) for ids in prompts(long, 3, 4, PREFILL_TOKENS + 2, 5)])
    assert counted.prefills == [(3, 5), (1, long), (1, PREFILL_TOKENS), (1, 2)]


def test_beginnings_are_read_once_and_kept() -> None:
    system = prompts(20)[0]
    others = prompts(7, 12, seed=1)
    alike = [[*system, 1, 2], [*system, 3, 4, 5]]
    counted = Counted(tiny_model())
    counted.answers([Asked(ids) for ids in (*alike, *others)])
    assert counted.prefills == [(3, 22), (1, 3)]
    assert counted.batch.prefixes.reused_tokens == 20
    again, fresh = Asked([*alike[0], 9, 9, 9]), Asked([*alike[0], 9, 9, 9])
    counted.answers([again])
    Counted(tiny_model()).answers([fresh])
    assert counted.prefills[2:] == [(1, 3)] and again.text == fresh.text, "of what was read together, too"


def test_a_short_prompt_is_read_together_with_itself() -> None:
    [short], [long] = prompts(16), prompts(17, seed=1)
    counted = Counted(tiny_model())
    twins, others = [Asked(short) for _ in range(2)], [Asked(long) for _ in range(2)]
    counted.answers(twins, others)
    assert counted.prefills == [(2, 16), (1, 17)], "of the longer ones the second needs one token"
    assert counted.batch.prefixes.reused_tokens == 16
    assert len({one.text for one in twins}) == len({one.text for one in others}) == 1


def test_scores_of_prompts_are_read_alone() -> None:
    scoring = Sampling(max_new_tokens=0, temperature=0, echo=True, top_logprobs=1)
    counted = Counted(tiny_model())
    crowd = [Asked(ids, scoring) for ids in prompts(9, 5)] + [Asked(ids) for ids in prompts(4, 6, seed=2)]
    counted.answers(crowd)
    assert sorted(counted.prefills) == [(1, 5), (1, 9), (2, 6)]
    assert [len(one.logprobs) > 0 for one in crowd] == [True] * 4


def test_one_that_cannot_be_read_fails_alone() -> None:
    good, bad = Asked(prompts(5)[0]), Asked([BOS, 400, 1])
    alone = Asked(prompts(5)[0])
    Counted(tiny_model()).answers([alone])
    counted = Counted(tiny_model())
    counted.answers([good, bad])
    assert good.text == alone.text
    assert [type(end) for end in bad.given] == [EngineError]


def test_a_token_that_cannot_be_taken_ends_its_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad, later = (Asked(ids) for ids in prompts(5, 6, 7))
    alone, take, taken = Asked(good.prompt_ids), Row.take, []
    Counted(tiny_model()).answers([alone])

    def broken(row: Row, logits_V: torch.Tensor) -> None:
        taken.append(row.request)
        if row.request is bad or (row.request is later and taken.count(later) == 3):
            raise ValueError("no such token")
        take(row, logits_V)

    monkeypatch.setattr(Row, "take", broken)
    Counted(tiny_model()).answers([good, bad, later])
    assert good.text == alone.text
    assert [type(one.given[-1]) for one in (bad, later)] == [EngineError] * 2
    assert len(later.given) > 1, "it had begun"


def test_a_cache_for_which_there_is_no_room_ends_all_and_no_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (Asked(ids) for ids in prompts(5, 6, 7))
    counted = Counted(tiny_model())
    counted.batch.join([first])

    def full(caches: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(batching, "joined", full)
        counted.batch.join([second])
    assert [type(one.given[-1]) for one in (first, second)] == [EngineError] * 2
    counted.answers([third])
    assert third.text
