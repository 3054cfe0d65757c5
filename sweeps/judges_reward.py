"""A local reward model as a judge: one forward pass an answer, higher is better."""

import functools
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from simpo.encoder import check_template
from simpo.errors import ModelError
from sweeps.judges_spec import RewardModel


class RewardModelJudge:
    """Implements `simpo.evaluation.judge.Judge`. Answers are scored one at a time: padding never touches a score."""

    def __init__(self, settings: RewardModel) -> None:
        self.settings = settings
        self.name = settings.model
        self._model, self._tokenizer = _loaded(settings.model, settings.dtype)

    def score(self, prompts: list[str], answers: list[str]) -> list[float | None]:
        """The model's single output for the conversation of prompt and answer; None where that is over max_length."""
        with torch.inference_mode():
            return [self._score(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]

    def _score(self, prompt: str, answer: str) -> float | None:
        ids = self._encode(prompt, answer)
        if ids["input_ids"].shape[1] > self.settings.max_length:
            return None
        return float(self._model(**ids).logits[0, 0])

    def _encode(self, prompt: str, answer: str) -> Any:
        if self._tokenizer.chat_template is None:  # models of pairs of texts, e.g. DeBERTa
            return self._tokenizer(prompt, answer, return_tensors="pt")
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return self._tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)


@functools.lru_cache(maxsize=1)
def _loaded(source: str, dtype: str) -> tuple[Any, Any]:
    """(model, tokenizer), kept for the process: a trial measures itself at every rung. Raises ModelError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            source,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelError(f"cannot be loaded as a reward model: {first}", "judge.model") from error
    check_template(tokenizer.chat_template, "judge.model")
    if loading["missing_keys"]:  # transformers would make up the head of a model that is no reward model
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ModelError(f"is no reward model: its weights lack {missing}", "judge.model")
    if model.config.num_labels != 1:
        raise ModelError(f"has {model.config.num_labels} outputs: a reward model has one", "judge.model")
    return model.eval(), tokenizer
