"""A model's answers to a set of prompts, turn by turn."""

from collections.abc import Sequence
from typing import Any

from simpo.config import TokenPolicy
from simpo.errors import DataError
from simpo.generate import Generation, generate
from simpo.prompts import EvaluationPrompt
from simpo.tokenize import encode_prompt, stop_token_ids


def answer_prompts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[EvaluationPrompt],
    policy: TokenPolicy,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[list[Generation]]:
    """One answer a turn for every prompt, in order; a later turn sees the model's own earlier answers.

    Without a chat template a prompt is plain text.
    Raises DataError: a prompt that does not fit, or, without a chat template, one of several messages.
    """
    answers: list[list[Generation]] = [[] for _ in prompts]
    for turn in range(max((len(prompt.turns) for prompt in prompts), default=0)):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt.turns) > turn]
        given = generate(
            model,
            tokenizer,
            [encode_prompt(_request(prompts[row], answers[row], tokenizer), tokenizer, policy) for row in rows],
            max_new_tokens=max_new_tokens,
            stop_ids=stop_token_ids(tokenizer, policy),
            temperature=temperature,
            seed=seed + turn,
        )
        for row, answer in zip(rows, given, strict=True):
            answers[row].append(answer)
    return answers


def _request(prompt: EvaluationPrompt, answers: Sequence[Generation], tokenizer: Any) -> Any:
    messages = prompt.messages([answer.text for answer in answers])
    if tokenizer.chat_template:
        return messages
    if len(messages) > 1:
        raise DataError(f"prompt {prompt.id} is a conversation, but the tokenizer has no chat template: give it one")
    return messages[0]["content"]
