"""One arm of the step benchmark, in a process of its own (peak memory is per process); prints one JSON object.

Protocol: random-init Llama, seed 0; fixed pairs, micro-batches of 4 in a fixed order; gradients set to None before
each step; timed is batch building + forward + backward; one untimed pass, then the least time of each micro-batch over
the repeats: CPU-seconds, or on a GPU wall seconds between synchronisations. The arms `trl*` go through the trainer's
own `training_step` on the accelerator-prepared model, with its own collator.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

from tests.bench.lengths import PAIRS_PER_STEP, SAMPLES, SHAPES, Shape, floor_flops, random_pairs

BETA, GAMMA = 2.0, 0.5
RANK, ALPHA = 16, 32
ARMS = ("ours", "trl", "trl-tuned")

Step = Callable[[list[int]], float]


def main() -> None:
    """Run one arm and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", choices=ARMS, required=True, help="trl-tuned: without gradient checkpointing")
    parser.add_argument("--shape", choices=SHAPES, default="30M")
    parser.add_argument("--sample", choices=SAMPLES, default="short")
    parser.add_argument("--pairs", type=int, help="only the first so many pairs of the sample")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--lora", action="store_true", help=f"adapters of rank {RANK} on every linear, base frozen")
    args = parser.parse_args()

    import torch  # noqa: PLC0415  # lazy: --help stays quick

    torch.set_num_threads(1)
    shape, lengths = SHAPES[args.shape], SAMPLES[args.sample][: args.pairs]
    pairs = random_pairs(lengths, shape.vocabulary)
    step = _our_step(args, shape, pairs) if args.arm == "ours" else _trl_step(args, shape, pairs)
    groups = [list(range(first, first + PAIRS_PER_STEP)) for first in range(0, len(pairs), PAIRS_PER_STEP)]
    before = _memory(args.device)
    losses = [step(group) for group in groups]
    best = [float("inf")] * len(groups)
    for _ in range(args.repeats):
        for i, group in enumerate(groups):
            started = _clock(args.device)
            step(group)
            best[i] = min(best[i], _clock(args.device) - started)
    seconds = statistics.mean(best)
    floor = floor_flops(shape, lengths, frozen=args.lora) / len(groups)
    figures = {
        "arm": args.arm,
        "seconds_per_step": seconds,
        "pairs_per_s": PAIRS_PER_STEP / seconds,
        "response_tokens_per_s": sum(chosen + rejected for _, chosen, rejected in lengths) / len(groups) / seconds,
        "bytes_above_model": _memory(args.device) - before,
        "peak_flops": _peak(args.dtype, args.device),
        "floor_flops_per_step": floor,
        "losses": losses,
    }
    print(json.dumps(figures))


def llama(shape: Shape, device: str = "cpu", **tokens: int) -> Any:
    """A random Llama of this shape, float32, made on the device. tokens: bos_token_id and the like."""
    import torch  # noqa: PLC0415  # lazy: --help stays quick
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415  # lazy: as above

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.mlp,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        **tokens,
    )
    with torch.device(device):
        return LlamaForCausalLM(config)


def _our_step(args: argparse.Namespace, shape: Shape, pairs: list[Any]) -> Step:
    """The micro-batch step of `simpo.fit`."""
    from simpo.attention import PAIR, register_pair_attention  # noqa: PLC0415  # lazy: the TRL arm must not pay for it
    from simpo.config import LoraConfig, OptimConfig  # noqa: PLC0415  # lazy: as above
    from simpo.fit import StepContext, TrainState, accumulate  # noqa: PLC0415  # lazy: as above
    from simpo.lora import add_lora  # noqa: PLC0415  # lazy: as above
    from simpo.memory import keep_freed_pages  # noqa: PLC0415  # lazy: as above
    from simpo.methods import SimPO  # noqa: PLC0415  # lazy: as above
    from simpo.model import DTYPES, without_dropout  # noqa: PLC0415  # lazy: as above
    from simpo.packing import PairStore  # noqa: PLC0415  # lazy: as above

    keep_freed_pages()
    register_pair_attention()
    model = without_dropout(llama(shape, args.device)).to(DTYPES[args.dtype])
    model.set_attn_implementation(PAIR)
    if args.lora:
        add_lora(model, LoraConfig(rank=RANK, alpha=ALPHA))
    store = PairStore.of(pairs)
    state = TrainState.fresh(model, OptimConfig(learning_rate=1e-6), 1)
    context = StepContext(method=SimPO(beta=BETA, gamma=GAMMA), global_pairs=PAIRS_PER_STEP, mean_chosen_len=1.0)

    def step(group: list[int]) -> float:
        for parameter in (*state.weights, *model.parameters()):
            parameter.grad = None
        loss, _ = accumulate(state, store.micro_batch(group).to(model.device), context)
        return float(loss.per_pair_B.mean())

    return step


def _trl_step(args: argparse.Namespace, shape: Shape, pairs: list[Any]) -> Step:
    """TRL's SimPO with its defaults (`trl`), or without checkpointing (`trl-tuned`), on ready token ids."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    warnings.simplefilter("ignore")
    from datasets import Dataset, disable_progress_bars  # noqa: PLC0415  # lazy: --help stays quick
    from transformers.utils import logging  # noqa: PLC0415  # lazy: as above
    from trl.experimental.cpo import CPOConfig, CPOTrainer  # noqa: PLC0415  # lazy: as above

    disable_progress_bars()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch:
        config = CPOConfig(
            output_dir=scratch,
            loss_type="simpo",
            cpo_alpha=0.0,
            beta=BETA,
            simpo_gamma=GAMMA,
            max_length=4096,
            per_device_train_batch_size=PAIRS_PER_STEP,
            bf16=args.dtype == "bfloat16",
            use_cpu=args.device == "cpu",
            report_to=[],
            disable_tqdm=True,
            **({"gradient_checkpointing": False} if args.arm == "trl-tuned" else {}),
        )
        trainer = CPOTrainer(
            model=llama(shape, args.device),
            args=config,
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "a"}]),
            processing_class=_two_word_tokenizer(),
            **({"peft_config": _peft_config()} if args.lora else {}),
        )
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    trainer.current_gradient_accumulation_steps = 1
    if trainer.args.gradient_checkpointing:  # what Trainer.train() does before its first step
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    model = trainer.accelerator.prepare(trainer.model)
    rows = [_trl_row(pair) for pair in pairs]

    def step(group: list[int]) -> float:
        for parameter in model.parameters():
            parameter.grad = None
        batch = trainer.data_collator([rows[i] for i in group])
        return float(trainer.training_step(model, batch).detach())

    return step


def _trl_row(pair: Any) -> dict[str, Any]:
    """The columns that CPOTrainer's own tokenisation leaves for its collator."""
    row: dict[str, Any] = {"prompt": "", "chosen": "", "rejected": "", "prompt_input_ids": pair.prompt}
    row["prompt_attention_mask"] = [1] * len(pair.prompt)
    for side, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        row[f"{side}_input_ids"] = [*pair.prompt, *response]
        row[f"{side}_attention_mask"] = [1] * (len(pair.prompt) + len(response))
        row[f"{side}_labels"] = [-100] * len(pair.prompt) + list(response)
    return row


def _peft_config() -> Any:
    from peft import LoraConfig  # noqa: PLC0415  # lazy: only the LoRA arm

    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")


def _two_word_tokenizer() -> Any:
    """TRL wants a tokenizer; the benchmark's ids are ready, so it only ever sees one row of two words."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415  # lazy: as above
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415  # lazy: as above

    words = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "b": 2}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>")


def _clock(device: str) -> float:
    """Seconds."""
    import torch  # noqa: PLC0415  # lazy: --help stays quick

    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _memory(device: str) -> int:
    """Most bytes so far."""
    import torch  # noqa: PLC0415  # lazy: --help stays quick

    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated()


def _peak(dtype: str, device: str) -> float:
    """Floating-point operations a second of a plain matrix product in this process: what the floor is divided by."""
    import torch  # noqa: PLC0415  # lazy: --help stays quick

    rows, inner, columns = (768, 1024, 1024) if device == "cpu" else (8192, 8192, 8192)
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    left, right = left.to(device, getattr(torch, dtype)), right.to(device, getattr(torch, dtype))
    best = float("inf")
    for _ in range(5):
        started = _clock(device)
        for _ in range(20):
            left @ right
        best = min(best, (_clock(device) - started) / 20)
    return 2.0 * rows * inner * columns / best


if __name__ == "__main__":
    main()
