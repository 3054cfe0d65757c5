"""Training and serving give the model the same ids: exactly one BOS, the same system turn, the same template."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.serving.engines.base import Turn
from service.serving.engines.transformers import TransformersEngine
from simpo.checkpoint import read_manifest, save_checkpoint
from simpo.config import TokenPolicy
from simpo.errors import CheckpointError
from simpo.policy_hash import honoured_policy, policy_hash, policy_record
from simpo.records import Message, Preference
from simpo.tokenize import encode_prompt, tokenize_preferences
from tests.serving.tiny import tiny_model, tiny_tokenizer
from tests.simpo import tokenizer_zoo as zoo

CHATML = ("<|im_start|>", "<|im_end|>")
TOKENIZERS: dict[str, tuple[Callable[[], Any], int]] = {  # and how many BOS a prompt begins with
    "llama3: template and tokenizer": (zoo.llama3, 1),
    "gemma: template and tokenizer": (zoo.gemma, 1),
    "mistral: template and tokenizer": (zoo.mistral, 1),
    "llama3's template alone": (lambda: zoo.bytes_tokenizer(zoo.LLAMA3, specials=("<|eot_id|>",)), 1),
    "tokenizer alone": (lambda: zoo.bytes_tokenizer(zoo.CHATML, specials=CHATML, adds_bos=True), 1),
    "a template that writes it twice": (lambda: zoo.bytes_tokenizer("{{ bos_token }}" + zoo.LLAMA3, adds_bos=True), 1),
    "neither, though there is one": (lambda: zoo.bytes_tokenizer(zoo.CHATML, specials=CHATML), 0),
    "chatml: there is none": (zoo.chatml, 0),
    "qwen: none, and a system turn": (zoo.qwen, 0),
}
OWN_TEMPLATE = "{{ bos_token }}{% for m in messages %}({{ m['role'] }}) {{ m['content'] }}</s>{% endfor %}(assistant)"
POLICIES = {
    "default": TokenPolicy(),
    "header": TokenPolicy(count_assistant_header=True),
    "empty system": TokenPolicy(system="empty"),
    "own template": TokenPolicy(chat_template=OWN_TEMPLATE),
    "reference": TokenPolicy(max_length=300, truncation="reference", max_prompt_length=200),
}
QUESTION = "what is it"


@contextmanager
def served(directory: Path, tokenizer: Any, policy: TokenPolicy) -> Iterator[TransformersEngine]:
    """What a trial saves, behind the engine that serves it."""
    model = tiny_model(vocab_size=len(tokenizer))
    manifest = policy_record(tokenizer, policy)
    engine = TransformersEngine.load(
        save_checkpoint(directory, model=model, tokenizer=tokenizer, manifest=manifest), dtype="float32"
    )
    try:
        yield engine
    finally:
        engine.close()


def trained_on(tokenizer: Any, policy: TokenPolicy, prompt: str | tuple[Message, ...]) -> list[int]:
    """The ids before a response in training; with a counted header, what both responses begin with belongs to it."""
    row = Preference(prompt=prompt, chosen=" it is a fox", rejected=" red cat", id="1")
    (pair,) = tokenize_preferences([row], tokenizer, policy).pairs
    header = len(encode_prompt(prompt, tokenizer, policy)) - len(pair.prompt)
    assert pair.chosen[:header] == pair.rejected[:header]
    return pair.prompt + pair.chosen[:header]


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize(("build", "num_bos"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_serving_feeds_the_ids_of_training(
    tmp_path: Path, build: Callable[[], Any], num_bos: int, policy: TokenPolicy
) -> None:
    tokenizer = build()
    if policy.chat_template and tokenizer.bos_token is None:
        pytest.skip("this template writes a BOS, which the tokenizer lacks")
    expected = trained_on(tokenizer, policy, (Message(role="user", content=QUESTION),))
    with served(tmp_path / "checkpoint", tokenizer, policy) as engine:
        ids = engine.encode_chat([Turn(role="user", content=QUESTION)])
        text = engine.encode_text(QUESTION)
    assert ids == expected
    wanted = 1 if policy.chat_template else num_bos
    assert ids[:2].count(tokenizer.bos_token_id) == wanted == ids.count(tokenizer.bos_token_id)
    assert text == trained_on(tokenizer, policy, QUESTION)
    assert text.count(tokenizer.bos_token_id) <= 1


@pytest.mark.quick
def test_a_system_turn_is_inserted_where_the_template_writes_one() -> None:
    empty, user = TokenPolicy(system="empty"), Message(role="user", content="hi")
    said = (Message(role="system", content="be kind"), user)

    def text(tokenizer: Any, policy: TokenPolicy, *turns: Message) -> str:
        return str(tokenizer.decode(encode_prompt(turns, tokenizer, policy)))

    assert text(zoo.chatml(), empty, user).startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\nhi")
    assert "Be helpful." in text(zoo.qwen(), TokenPolicy(), user)
    assert "Be helpful." not in text(zoo.qwen(), empty, user)
    for tokenizer in (zoo.chatml(), zoo.qwen()):
        assert text(tokenizer, empty, *said) == text(tokenizer, TokenPolicy(), *said), "one that is there stays"
    for tokenizer in (zoo.gemma(), zoo.mistral()):  # both spell or imply "system" only to refuse it
        assert text(tokenizer, empty, user) == text(tokenizer, TokenPolicy(), user)
    deaf = zoo.bytes_tokenizer(
        "{# system #}{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
    )
    assert text(deaf, empty, user) == "hi"
    assert encode_prompt("hi", zoo.chatml(), empty) == encode_prompt("hi", zoo.chatml(), TokenPolicy())


@pytest.mark.quick
def test_the_hash_covers_what_decides_ids() -> None:
    policy = TokenPolicy()
    hashes = {policy_hash(zoo.chatml(), each) for each in POLICIES.values()}
    hashes |= {policy_hash(zoo.bytes_tokenizer(zoo.CHATML, specials=CHATML, adds_bos=adds), policy) for adds in (0, 1)}
    hashes.add(policy_hash(zoo.qwen(), policy))
    assert len(hashes) == len(POLICIES) + 3
    assert policy_hash(zoo.chatml(), policy) == policy_hash(zoo.chatml(), TokenPolicy(chat_template=None))
    same = TokenPolicy(chat_template=zoo.CHATML)
    assert policy_record(zoo.chatml(), same)["tokens"]["chat_template"] == zoo.CHATML


@pytest.mark.quick
def test_a_checkpoint_whose_policy_cannot_be_honoured_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    record = policy_record(tokenizer, TokenPolicy())
    assert honoured_policy(record, tokenizer) == TokenPolicy()
    assert honoured_policy({}, tokenizer) == TokenPolicy(), "a base model from elsewhere"
    tokenizer.chat_template = zoo.BARE
    with pytest.raises(CheckpointError, match=r"policy_hash: .*no longer give the ids of training"):
        honoured_policy(record, tokenizer)
    for tokens, words in (
        ({"truncation": "middle"}, "truncation: must be one of drop, reference, trl"),
        ({"max_prompt_length": 4}, "only truncation: reference"),
        (7, "another version"),
    ):
        with pytest.raises(CheckpointError, match=words):
            honoured_policy({"tokens": tokens}, tokenizer)
    directory = save_checkpoint(
        tmp_path / "altered",
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
        manifest={**record, "policy_hash": "0" * 64},
    )
    assert read_manifest(directory)["policy_hash"] == "0" * 64
    with pytest.raises(CheckpointError, match="policy_hash"):
        TransformersEngine.load(directory)
