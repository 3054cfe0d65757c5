"""What a person can set about a run: frozen, keyword-only dataclasses, prose under each field. Methods: `methods.py`.

Standard library only, so that the control plane can read it without torch. The classes nest in pydantic models as they
are: `__pydantic_config__` makes an unknown key an error there too.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from simpo.checks import at_least, in_range, not_negative, one_of, positive
from simpo.errors import ConfigError

MAX_TEMPLATE = 64 * 1024
"""Characters of a chat template. Templates are programs of strangers: the longest in use have a tenth of that."""


@dataclass(frozen=True, kw_only=True)
class TokenPolicy:
    """How text becomes token ids; hashed into every manifest. Training, evaluation and serving use the same one."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    max_length: int = 1024
    """Most tokens of prompt + the longer response."""
    truncation: Literal["drop", "reference", "trl"] = "drop"
    """What happens to a pair over max_length. drop: it is left out and counted. reference (the SimPO authors' code):
    the prompt is cut to its last max_prompt_length tokens, then both responses to their first max_length -
    max_prompt_length. trl (TRL's CPO): each response is cut to what the prompt leaves. Every cut is counted."""
    max_prompt_length: int | None = None
    """What a prompt is cut to, its BOS included. truncation: reference needs it, the others refuse it. The authors:
    1800 of 2048, 512 of 1024."""
    count_assistant_header: bool = False
    """False: the assistant header belongs to the prompt (TRL's rule). True: to the response (the authors' code)."""
    system: Literal["keep", "empty"] = "keep"
    """keep: conversations as they are. empty (the authors' auto_insert_empty_system_msg): one without a system turn
    gets an empty one in front, where the chat template writes system turns. In training and in serving alike."""
    chat_template: str | None = None
    """Jinja text used instead of the tokenizer's own chat template; saved with every checkpoint. Never a name."""

    def __post_init__(self) -> None:
        at_least(self, "max_length", 8)
        one_of(self, "truncation", ("drop", "reference", "trl"))
        one_of(self, "system", ("keep", "empty"))
        self._check_prompt_length()
        if not isinstance(self.count_assistant_header, bool):
            raise ConfigError(f"must be true or false, not {self.count_assistant_header!r}", "count_assistant_header")
        if self.chat_template is not None and not (isinstance(self.chat_template, str) and self.chat_template.strip()):
            raise ConfigError("must be the text of a Jinja template, or left out", "chat_template")
        size = len(self.chat_template or "")
        if size > MAX_TEMPLATE:
            raise ConfigError(f"must be at most {MAX_TEMPLATE} characters long, not {size}", "chat_template")

    def _check_prompt_length(self) -> None:
        if self.truncation != "reference":
            if self.max_prompt_length is not None:
                raise ConfigError(
                    f"only truncation: reference cuts prompts, this is {self.truncation}: leave it out",
                    "max_prompt_length",
                )
            return
        if self.max_prompt_length is None:
            raise ConfigError("is required with truncation: reference, e.g. 1800 of 2048", "max_prompt_length")
        at_least(self, "max_prompt_length", 2)
        if self.max_prompt_length >= self.max_length:
            raise ConfigError(
                f"must be below max_length {self.max_length}, so that a response keeps room", "max_prompt_length"
            )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    learning_rate: float
    """Peak rate. The most important hyperparameter of SimPO: 3e-7 to 1e-6 for 7B models, never 1e-5 (SimPO README)."""
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    """wsd: warm up, hold, decay at the end, so that rung scores do not depend on the planned length. cosine: paper."""
    warmup_fraction: float = 0.1
    """Share of all steps with a linear rise from 0."""
    decay_fraction: float = 0.2
    """Share of all steps with a linear fall to 0 at the end (wsd only)."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on every parameter of two or more dimensions."""
    beta1: float = 0.9
    """Decay of Adam's first moment."""
    beta2: float = 0.999
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Adam's denominator floor."""
    max_grad_norm: float = 1.0
    """Global gradient norm above which the gradient is scaled down."""

    def __post_init__(self) -> None:
        positive(self, "learning_rate")
        one_of(self, "schedule", ("wsd", "cosine", "constant"))
        in_range(self, "warmup_fraction", 0.0, 1.0)
        in_range(self, "decay_fraction", 0.0, 1.0)
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1.0:
            raise ConfigError("warmup_fraction + decay_fraction must not exceed 1: lower one of them", "decay_fraction")
        not_negative(self, "weight_decay")
        in_range(self, "beta1", 0.0, 1.0)
        in_range(self, "beta2", 0.0, 1.0)
        positive(self, "eps")
        positive(self, "max_grad_norm")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Train low-rank adapters (Hu et al. 2021) beside frozen weights, instead of the weights."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    rank: int = 16
    """Width of the two thin matrices beside each adapted layer."""
    alpha: float = 32.0
    """The adapter's output is scaled by alpha / rank."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which linear layers: all but the head, or those with these names, e.g. [q_proj, v_proj]."""
    dropout: float = 0.0
    """Must be 0: a preference loss compares forwards, and the authors' code and TRL silently set it to 0 as well."""
    seed: int = 0
    """Of the adapters' first weights; the same in all trials of a sweep."""

    def __post_init__(self) -> None:
        at_least(self, "rank", 1)
        positive(self, "alpha")
        at_least(self, "seed", 0)
        if self.targets != "all-linear" and (isinstance(self.targets, str) or not self.targets):
            raise ConfigError("must be all-linear or a list of layer names, e.g. [q_proj, v_proj]", "targets")
        if self.dropout != 0:
            raise ConfigError("must be 0: training compares forward passes, in which dropout would be noise", "dropout")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The run itself: how long, in which batches, in which precision."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    steps: int
    """Optimiser steps at full budget."""
    batch_pairs: int = 128
    """Pairs in one optimiser step (the global batch over all workers). The paper: 128."""
    token_budget: int = 16384
    """Most unique tokens in one packed micro-batch; a single longer pair gets a micro-batch of its own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward and backward products. Weights, sums, normalisation and loss are float32 always."""
    seed: int = 0
    """Order of the pairs and every random choice of training."""
    lora: LoraConfig | None = None
    """Adapters to train on the frozen model; None: train every weight."""
    checkpointing: Literal["off", "on", "auto"] = "off"
    """Compute each layer's forward again in the backward instead of keeping it: a third more work, the same gradients.
    auto: only when an estimate of what would be kept exceeds the free memory (simpo/memory.py)."""
    sharding: Literal["none", "full"] = "none"
    """Of several workers, what each holds. none: all weights, gradients and moments. full: its share of them (FSDP2);
    layers are gathered as they are needed, so that it takes more communication and less memory."""

    def __post_init__(self) -> None:
        at_least(self, "steps", 1)
        at_least(self, "batch_pairs", 1)
        at_least(self, "token_budget", 1)
        one_of(self, "dtype", ("float32", "bfloat16"))
        one_of(self, "checkpointing", ("off", "on", "auto"))
        one_of(self, "sharding", ("none", "full"))
        at_least(self, "seed", 0)
