"""Rows that share passes: each gets what it would get alone, and what transformers' own attention gives; who comes does
not stop who is there; what goes wrong is one row's end.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from service.serving.engines.base import EngineError, Piece, Sampling
from service.serving.engines.batching import PREFILL_TOKENS, Batch, Pace
from service.serving.engines.passes import prepare
from service.serving.engines.prefixes import Prefixes
from service.serving.engines.rows import Request, Row, Voice
from service.serving.engines.sampling import Look
from service.serving.engines.slots import Slots
from service.serving.engines.transformers import Tokens
from simpo.config import TokenPolicy
from tests.serving.tiny import BOS, EOS, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.quick

VOICE = Tokens(tiny_tokenizer(), TokenPolicy()).voice()
NEVER_ENDS = {EOS: -100.0}
SCORED = Sampling(max_new_tokens=6, temperature=0, top_logprobs=3, logit_bias=NEVER_ENDS)


class Counted:
    """A batch over a model, and how many tokens of each row its passes read."""

    def __init__(self, model: Any) -> None:
        prepare(model)
        self.passes: list[list[int]] = []
        forward = model.forward

        def counted(**inputs: Any) -> Any:
            self.passes.append(sorted(len(stretch.ids) for stretch in inputs["rows_pass"].stretches))
            return forward(**inputs)

        model.forward = counted
        self.batch = Batch(model, lambda adapters, counts: None, lambda: None)

    def answers(self, *groups: Sequence[Request]) -> None:
        """Groups come one after another, a step between them; then all are answered."""
        for group in groups:
            for request in group:
                self.batch.add(request)
            self.batch.step()
        while len(self.batch):
            self.batch.step()

    @property
    def prefills(self) -> list[list[int]]:
        """What is more than one token, by pass."""
        return [longer for lengths in self.passes if (longer := [n for n in lengths if n > 1])]


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
        [BOS, number, *torch.randint(0, 255, (length,), generator=draw).tolist()][:length]
        for number, length in enumerate(lengths)
    ]


SHAPE: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.4,
    "max_position_embeddings": 96,
    "sliding_window": 5,  # shorter than the prompts
}


def capped(**changes: Any) -> Gemma2ForCausalLM:
    """Soft caps, and a window in every other layer."""
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, **changes)).eval()


def windowed() -> MistralForCausalLM:
    """A window in every layer."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SHAPE)).eval()


def heads_of_their_own() -> Any:
    """Each query head has its own keys."""
    return tiny_model(num_key_value_heads=4)


def two_rotations() -> Gemma3ForCausalLM:
    """Layers with a window turn by other angles than the one without; norms of queries and keys."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(**SHAPE, head_dim=8, layer_types=["sliding_attention", "full_attention"])
    return Gemma3ForCausalLM(config).eval()


def normed() -> Qwen3ForCausalLM:
    """Norms of queries and keys."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8)).eval()


MODELS = [two_rotations, normed, tiny_model, heads_of_their_own, windowed, capped]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("lengths", [(3, 3), (2, 17, 9, 17, 3), (60, 2), (1, 63, 62, 30)])
def test_together_as_alone(make: Any, lengths: Sequence[int]) -> None:
    together, alone = [[Asked(ids) for ids in prompts(*lengths)] for _ in range(2)]
    counted = Counted(make())
    counted.answers(together)
    assert counted.passes[0] == sorted(lengths)
    for one in alone:
        Counted(make()).answers([one])
    for mine, other in zip(together, alone, strict=True):
        assert mine.text == other.text and len(mine.given) >= 1
        assert mine.logprobs == pytest.approx(other.logprobs, abs=2e-4)


@pytest.mark.parametrize("make", MODELS)
def test_the_scores_are_those_of_transformers_own_attention(make: Any) -> None:
    crowd = [Asked(ids, SCORED) for ids in prompts(20, 7, 61)]
    begun = [Asked([*crowd[0].prompt_ids, 5, 6, 7]), Asked([*crowd[2].prompt_ids, 9])]
    counted = Counted(make())
    counted.answers(crowd, begun)
    assert counted.batch.prefixes.reused_tokens == 20 + 61
    plain = make()
    plain.set_attn_implementation("eager")
    for one in (*crowd, *begun):
        scores = [score for piece in one.given if isinstance(piece, Piece) for score in piece.scores]
        ids = [score.token_id for score in scores]
        with torch.inference_mode():
            logits_TV = plain(torch.tensor([[*one.prompt_ids, *ids]])).logits[0, len(one.prompt_ids) - 1 : -1]
        expected = torch.log_softmax(logits_TV.float(), dim=-1)
        assert len(ids) == 6
        for score, logp_V in zip(scores, expected, strict=True):
            assert score.logprob == pytest.approx(float(logp_V[score.token_id]), abs=2e-4)
            assert [top.logprob for top in score.top] == pytest.approx(logp_V.topk(3).values.tolist(), abs=2e-4)


def test_who_comes_is_read_beside_those_who_are_being_answered() -> None:
    first, *later = prompts(20, 5, 30, 8)
    alone = [Asked(ids) for ids in (first, *later)]
    for one in alone:
        Counted(tiny_model()).answers([one])
    counted = Counted(tiny_model())
    crowd = [Asked(first), *map(Asked, later)]
    counted.answers(crowd[:1], crowd[1:])
    assert [one.text for one in crowd] == [one.text for one in alone]
    assert counted.passes[:3] == [[20], [1, 5, 8, 30], [1, 1, 1, 1]]


def test_who_is_done_at_once_leaves_and_the_others_go_on() -> None:
    once = Sampling(max_new_tokens=1, temperature=0)
    short, long = prompts(4, 20)
    alone, counted = Asked(short), Counted(tiny_model())
    Counted(tiny_model()).answers([alone])
    crowd = [Asked(long, once), Asked(short)]
    for one in crowd:
        counted.batch.add(one)
    counted.batch.step()
    assert len(counted.batch) == 1 and len(crowd[0].given) == 1
    counted.answers()
    assert crowd[1].text == alone.text


def test_a_row_that_outgrows_its_slot_moves_and_says_the_same() -> None:
    long = Sampling(max_new_tokens=80, temperature=0, logit_bias=NEVER_ENDS)
    crowd, alone = [[Asked(ids, long) for ids in prompts(3, 60, 40, 62)] for _ in range(2)]
    context = 256
    Counted(tiny_model(max_position_embeddings=context)).answers(crowd[:2], crowd[2:])
    for one in alone:
        Counted(tiny_model(max_position_embeddings=context)).answers([one])
    assert [one.text for one in crowd] == [one.text for one in alone]


def test_a_long_prompt_is_read_in_pieces_while_others_are_answered() -> None:
    long, rest = PREFILL_TOKENS + 100, 90
    [first, *crowd], alone = [[Asked(ids) for ids in prompts(3, long, rest, PREFILL_TOKENS, 4)] for _ in range(2)]
    model = {"max_position_embeddings": 4 * PREFILL_TOKENS}
    counted = Counted(tiny_model(**model))
    counted.answers([first], crowd)
    assert counted.passes[1:4] == [
        [1, PREFILL_TOKENS],
        [1, 4, rest, 100],  # what fits beside the end of the long one; of the other one, nothing
        [1, 1, 1, 1, PREFILL_TOKENS],
    ]
    for one in alone:
        Counted(tiny_model(**model)).answers([one])
    assert [one.text for one in (first, *crowd)] == [one.text for one in alone]


def test_a_model_that_is_slow_reads_in_smaller_pieces() -> None:
    pace, tokens = Pace(), list[int]()
    for seconds in (0.1, 3.0, 3.0, 1.0, 60.0, 60.0, 60.0, 60.0, 0.1, 1.9, 0.4, 0.1, 0.1, 0.1):
        pace.note(seconds)
        tokens.append(pace.tokens)
    assert tokens == [512, 256, 128, 128, 64, 32, 32, 32, 64, 64, 128, 256, 512, 512]
    counted = Counted(tiny_model())
    counted.batch.pace.tokens = 32
    crowd, alone = [[Asked(ids) for ids in prompts(70, 30, 5)] for _ in range(2)]
    counted.batch.pace.note = lambda seconds: None  # type: ignore[method-assign]
    counted.answers(crowd)
    assert counted.prefills == [[32], [32], [5, 6], [30]]
    for one in alone:
        Counted(tiny_model()).answers([one])
    assert [one.text for one in crowd] == [one.text for one in alone]


def test_who_leaves_in_the_middle_of_a_prompt_leaves_nothing() -> None:
    counted = Counted(tiny_model(max_position_embeddings=4 * PREFILL_TOKENS))
    gone, stays = (Asked(ids) for ids in prompts(PREFILL_TOKENS + 9, 5))
    for one in (gone, stays):
        counted.batch.add(one)
    counted.batch.step()
    gone.abandoned = True
    counted.answers()
    assert counted.prefills == [[PREFILL_TOKENS], [5]] and gone.given == [] and stays.text


def test_beginnings_are_read_once_and_kept() -> None:
    system = prompts(20)[0]
    others = prompts(7, 12, seed=1)
    alike = [[*system, 1, 2], [*system, 3, 4, 5]]
    counted = Counted(tiny_model())
    counted.answers([Asked(ids) for ids in (*alike, *others)])
    assert counted.prefills == [[7, 12, 22], [3]]
    assert counted.batch.prefixes.reused_tokens == 20
    again, fresh = Asked([*alike[0], 9, 9, 9]), Asked([*alike[0], 9, 9, 9])
    counted.answers([again])
    Counted(tiny_model()).answers([fresh])
    assert counted.prefills[2:] == [[3]] and again.text == fresh.text, "of what was read beside others, too"


def test_many_who_share_a_long_beginning_are_read_in_one_pass() -> None:
    system = prompts(PREFILL_TOKENS - 9)[0]
    counted = Counted(tiny_model(max_position_embeddings=4 * PREFILL_TOKENS))
    counted.answers([Asked([*system, n, n]) for n in range(5)])
    assert counted.prefills[:2] == [[len(system) + 2], [2]], "the others wait for one that may be all the same"
    counted.answers([Asked([*system, n, 9, 9]) for n in range(10, 15)])
    assert counted.batch.prefixes.reused_tokens == 9 * len(system)


def test_twins_need_one_token() -> None:
    [short], [long] = prompts(16), prompts(17, seed=1)
    counted = Counted(tiny_model())
    twins, others = [Asked(short) for _ in range(2)], [Asked(long) for _ in range(3)]
    counted.answers(twins, others)
    assert counted.prefills == [[16, 16], [17]], "one that is too short to share is read with itself"
    assert counted.batch.prefixes.reused_tokens == 2 * 16
    assert len({one.text for one in twins}) == len({one.text for one in others}) == 1


def test_what_is_kept_is_bounded_and_the_oldest_goes() -> None:
    prefixes, long = Prefixes(max_tokens=60), [prompt[:25] for prompt in prompts(30, 30, 30)]
    for ids in long:
        assert prefixes.wants(ids, None)
        prefixes.keep(ids, None, {})
        assert not prefixes.wants(ids, None)
    assert [prefixes.longest([*ids, 1], None)[1] for ids in long] == [0, 25, 25]
    assert prefixes.longest([*long[1], 1], object())[1] == 0, "another adapter's"
    prefixes.longest([*long[1], 1], None)
    prefixes.keep(long[0], None, {})
    assert [prefixes.longest([*ids, 1], None)[1] for ids in long] == [25, 25, 0], "who was asked for lately stays"
    assert not prefixes.wants(range(61), None) and not prefixes.wants(range(16), None)


def test_prompts_that_are_scored_are_read_whole_beside_the_others() -> None:
    scoring = Sampling(max_new_tokens=2, temperature=0, echo=True, top_logprobs=1, logit_bias=NEVER_ENDS)
    [ids, _] = prompts(20, 5)
    crowd = [Asked(ids, scoring), Asked(ids, scoring), *map(Asked, prompts(4, 6, seed=2))]
    alone = Asked(ids, scoring)
    counted = Counted(tiny_model())
    counted.answers(crowd)
    Counted(tiny_model()).answers([alone])
    assert counted.prefills == [[4, 6, 20, 20]]
    for one in crowd[:2]:
        assert one.logprobs == pytest.approx(alone.logprobs, abs=2e-4)
        assert len(one.logprobs) == 1 + 2 * (19 + 2)


def test_a_scored_prompt_in_pieces_has_every_score_once() -> None:
    scoring = Sampling(max_new_tokens=0, temperature=0, echo=True, top_logprobs=0)
    [ids] = prompts(PREFILL_TOKENS + 50)
    model = {"max_position_embeddings": 2 * PREFILL_TOKENS}
    asked, counted = Asked(ids, scoring), Counted(tiny_model(**model))
    counted.answers([asked])
    assert counted.passes == [[PREFILL_TOKENS], [50]]
    plain = tiny_model(**model)
    with torch.inference_mode():
        logp_TV = torch.log_softmax(plain(torch.tensor([ids])).logits[0], dim=-1)
    expected = logp_TV[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    assert asked.logprobs[0] == 0.0 and asked.logprobs[1:] == pytest.approx(expected, abs=2e-4)


def test_one_that_cannot_be_read_fails_alone() -> None:
    there, good, bad = Asked(prompts(5)[0]), Asked(prompts(6, seed=1)[0]), Asked([BOS, 400, 1])
    alone = [Asked(there.prompt_ids), Asked(good.prompt_ids)]
    for one in alone:
        Counted(tiny_model()).answers([one])
    counted = Counted(tiny_model())
    counted.answers([there], [good, bad])
    assert [there.text, good.text] == [one.text for one in alone]
    assert [type(end) for end in bad.given] == [EngineError]


def test_a_token_that_cannot_be_taken_ends_its_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad, later = (Asked(ids) for ids in prompts(5, 6, 7))
    alone, take, taken = Asked(good.prompt_ids), Row.take, []
    Counted(tiny_model()).answers([alone])

    def broken(row: Row, logits_V: torch.Tensor, look: Look) -> None:
        taken.append(row.request)
        if row.request is bad or (row.request is later and taken.count(later) == 3):
            raise ValueError("no such token")
        take(row, logits_V, look)

    monkeypatch.setattr(Row, "take", broken)
    Counted(tiny_model()).answers([good, bad, later])
    assert good.text == alone.text
    assert [type(one.given[-1]) for one in (bad, later)] == [EngineError] * 2
    assert len(later.given) > 1, "it had begun"


def test_one_for_whom_there_is_no_memory_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    first, wide, third = (Asked(ids) for ids in prompts(5, 70, 7))
    alone, made = Asked(first.prompt_ids), Slots._made
    Counted(tiny_model()).answers([alone])

    def short(slots: Slots, layer: int, columns: int, *args: Any) -> Any:
        if columns > 64 and layer == 1:
            raise MemoryError
        return made(slots, layer, columns, *args)

    counted = Counted(tiny_model())
    with monkeypatch.context() as patched:
        patched.setattr(Slots, "_made", short)
        counted.answers([first], [wide])
    assert first.text == alone.text
    assert [type(one) for one in wide.given] == [EngineError]
    counted.answers([third])
    assert third.text
