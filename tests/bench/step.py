"""The packed SimPO step against TRL 1.16's stock step: same pairs, same weights, same loss, one thread, CPU-seconds.

Each arm runs in a process of its own (peak memory is per process) and prints one JSON object. Protocol: random-init
Llama of 30M parameters, micro-batches of 4 pairs in a fixed order, gradients set to None before each step; timed is
batch building + forward + backward; one untimed pass, then the least CPU time of each micro-batch over the repeats.
"""

import argparse
import gzip
import json
import os
import random
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAIRS_PER_STEP = 4
BETA, GAMMA = 2.0, 0.5


def main() -> None:
    """Run one arm and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", choices=("ours", "trl", "trl-tuned"), required=True)
    parser.add_argument("--data", type=Path, required=True, help="a preference jsonl.gz file")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--work", type=Path, required=True, help="a directory for the tokenizer")
    args = parser.parse_args()

    import torch  # noqa: PLC0415  # lazy: --help stays quick

    torch.set_num_threads(1)
    trainer, tokenised = _trl(args)
    groups = [list(range(i, i + PAIRS_PER_STEP)) for i in range(0, args.pairs, PAIRS_PER_STEP)]
    step = _our_step(args, trainer.model, tokenised) if args.arm == "ours" else _trl_step(trainer)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    losses = [step(group) for group in groups]
    best = [float("inf")] * len(groups)
    for _ in range(args.repeats):
        for i, group in enumerate(groups):
            started = time.process_time()
            step(group)
            best[i] = min(best[i], time.process_time() - started)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    response_tokens = sum(len(pair[1]) + len(pair[2]) for pair in tokenised)
    cpu_s = statistics.mean(best)
    figures = {
        "arm": args.arm,
        "dtype": args.dtype,
        "cpu_s_per_step": cpu_s,
        "pairs_per_s": PAIRS_PER_STEP / cpu_s,
        "response_tokens_per_s": response_tokens / len(groups) / cpu_s,
        "bytes_above_model": memory,
        "losses": losses,
    }
    print(json.dumps(figures))


Step = Callable[[list[int]], float]


def _our_step(args: argparse.Namespace, source_model: Any, tokenised: list[Any]) -> Step:
    """The micro-batch step of `simpo.fit`, on the weights that TRL holds."""
    from simpo.attention import PAIR, register_pair_attention  # noqa: PLC0415  # lazy: the TRL arm must not pay for it
    from simpo.config import OptimConfig  # noqa: PLC0415  # lazy: as above
    from simpo.fit import StepContext, TrainState, accumulate  # noqa: PLC0415  # lazy: as above
    from simpo.methods import SimPO  # noqa: PLC0415  # lazy: as above
    from simpo.model import DTYPES, without_dropout  # noqa: PLC0415  # lazy: as above
    from simpo.packing import PairStore  # noqa: PLC0415  # lazy: as above

    register_pair_attention()
    model = without_dropout(source_model).to(DTYPES[args.dtype])
    model.gradient_checkpointing_disable()
    model.set_attn_implementation(PAIR)
    store = PairStore.of(tokenised)
    state = TrainState.fresh(model, OptimConfig(learning_rate=1e-6), 1)
    context = StepContext(
        method=SimPO(beta=BETA, gamma=GAMMA), global_pairs=PAIRS_PER_STEP, mean_chosen_len=1.0
    )

    def step(group: list[int]) -> float:
        for parameter in (*state.weights, *model.parameters()):
            parameter.grad = None
        loss, _ = accumulate(state, store.micro_batch(group), context)
        return float(loss.per_pair_B.mean())

    return step


def _trl_step(trainer: Any) -> Step:
    rows = trainer.train_dataset
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    trainer.current_gradient_accumulation_steps = 1
    if trainer.args.gradient_checkpointing:  # what Trainer.train() does before its first step
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    model = trainer.accelerator.prepare(trainer.model)

    def step(group: list[int]) -> float:
        for parameter in model.parameters():
            parameter.grad = None
        batch = trainer.data_collator([rows[i] for i in group])
        return float(trainer.training_step(model, batch).detach())

    return step


def _trl(args: argparse.Namespace) -> tuple[Any, list[Any]]:
    """TRL's trainer on the sample, and the same token ids as our pairs."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    warnings.simplefilter("ignore")
    import torch  # noqa: PLC0415  # lazy: --help stays quick
    from datasets import Dataset, disable_progress_bars  # noqa: PLC0415  # lazy: as above
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415  # lazy: as above
    from transformers.utils import logging  # noqa: PLC0415  # lazy: as above
    from trl.experimental.cpo import CPOConfig, CPOTrainer  # noqa: PLC0415  # lazy: as above

    from simpo.packing import TokenPair  # noqa: PLC0415  # lazy: as above

    disable_progress_bars()
    logging.set_verbosity_error()
    rows = _sample(args.data, args.pairs)
    tokenizer = _tokenizer(args.data, args.work)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=384,
            num_hidden_layers=12,
            intermediate_size=1024,
            num_attention_heads=6,
            num_key_value_heads=2,
            vocab_size=32000,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
    )
    config = CPOConfig(
        output_dir=str(args.work / "trl"),
        loss_type="simpo",
        cpo_alpha=0.0,
        beta=BETA,
        simpo_gamma=GAMMA,
        max_length=4096,
        per_device_train_batch_size=PAIRS_PER_STEP,
        bf16=args.dtype == "bfloat16",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **({"gradient_checkpointing": False} if args.arm == "trl-tuned" else {}),
    )
    trainer = CPOTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    pairs = []
    for row in trainer.train_dataset:
        chosen, rejected = ([t for t in row[f"{side}_labels"] if t != -100] for side in ("chosen", "rejected"))
        prompt = row["chosen_input_ids"][: len(row["chosen_input_ids"]) - len(chosen)]
        assert prompt + rejected == row["rejected_input_ids"]
        pairs.append(TokenPair(prompt, chosen, rejected))
    return trainer, pairs


def _sample(data: Path, num_pairs: int) -> list[dict[str, str]]:
    with gzip.open(data, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    random.Random(0).shuffle(rows)
    return [
        {
            "prompt": "".join(f"\n\n{turn['role']}: {turn['content']}" for turn in row["prompt"]) + "\n\nassistant:",
            "chosen": " " + row["chosen"][0]["content"],
            "rejected": " " + row["rejected"][0]["content"],
        }
        for row in rows[:num_pairs]
    ]


def _tokenizer(data: Path, work: Path) -> Any:
    """A byte-level BPE of at most 32,000 entries, trained on the file's own texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415  # lazy: as above
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415  # lazy: as above

    saved = work / f"{data.name}.tokenizer.json"
    if not saved.exists():
        with gzip.open(data, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        texts = [turn["content"] for row in rows for turn in (*row["prompt"], *row["chosen"], *row["rejected"])]
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        special = ["<s>", "</s>"]
        bpe.train_from_iterator(
            texts, trainers.BpeTrainer(vocab_size=32000, special_tokens=special, show_progress=False)
        )
        bpe.save(str(saved))
    return PreTrainedTokenizerFast(tokenizer_file=str(saved), bos_token="<s>", eos_token="</s>", pad_token="</s>")


if __name__ == "__main__":
    main()
