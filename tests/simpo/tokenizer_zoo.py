"""Small tokenizers made on the spot, one for each habit of the real ones that the token policy has to survive."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""Writes its own BOS; ends a turn with a token that is not EOS."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""No BOS; a newline after the end of a turn."""

GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""Writes its own BOS; refuses a system turn."""

BARE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""No special token anywhere: the response needs EOS."""

MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
"""Writes its own BOS; no header before an answer; refuses what does not alternate, a system turn included."""

QWEN = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}" + CHATML
"""ChatML with a system turn of its own, unless there is one."""

TWO_FACED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""Renders a prompt otherwise than the conversation that begins with it."""


def bytes_tokenizer(
    template: str | None,
    *,
    specials: tuple[str, ...] = (),
    bos: str | None = "<s>",
    eos: str | None = "</s>",
    adds_bos: bool = False,
    merges: tuple[tuple[str, str], ...] = (),
) -> PreTrainedTokenizerFast:
    """One token a byte, the special tokens, and the merges asked for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in (bos, eos, *specials) if t is not None])
    if adds_bos and bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


def llama3() -> PreTrainedTokenizerFast:
    """One token a word; begins plain text with BOS too, as Llama-3's own tokenizer does."""
    words = ["system", "user", "assistant", "\n\n", "what", "is", "it", "a", "red", "fox", "cat", "[UNK]"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n\n|\w+"), behavior="removed", invert=True)
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", backend.token_to_id("<|begin_of_text|>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", unk_token="[UNK]"
    )
    tokenizer.chat_template = LLAMA3
    return tokenizer


def chatml(**options: object) -> PreTrainedTokenizerFast:
    """As Qwen's: no BOS at all, `<|im_end|>` is EOS."""
    return bytes_tokenizer(CHATML, specials=("<|im_start|>",), bos=None, eos="<|im_end|>", **options)  # type: ignore[arg-type]


def gemma() -> PreTrainedTokenizerFast:
    """As Gemma's: EOS differs from the end of a turn, BOS is added by tokenizer and template."""
    return bytes_tokenizer(
        GEMMA, specials=("<start_of_turn>", "<end_of_turn>"), bos="<bos>", eos="<eos>", adds_bos=True
    )


def mistral() -> PreTrainedTokenizerFast:
    """As Mistral-Instruct's: the marks are control tokens, BOS is added by tokenizer and template."""
    return bytes_tokenizer(MISTRAL, specials=("[INST]", "[/INST]"), adds_bos=True)


def qwen() -> PreTrainedTokenizerFast:
    """As Qwen2's: `chatml` with a system turn of the template's own."""
    tokenizer = chatml()
    tokenizer.chat_template = QWEN
    return tokenizer
