"""`python -m simpo`: train, evaluate or generate on one machine, no Ray, no service.

    python -m simpo train --model DIR --data pairs.jsonl --out runs/a --method simpo --set beta=2.5 --learning-rate 5e-7
    python -m simpo evaluate --model runs/a/final --data held_out.jsonl
    python -m simpo generate --model runs/a/final --prompt "Name three primes."
    python -m simpo doctor pairs.jsonl --eval held_out.jsonl --tokenizer DIR
    python -m simpo score mt-bench --judgments judgments.jsonl
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils import logging as transformers_logging

from simpo.answers import answer_prompts
from simpo.checkpoint import MANIFEST, newest_valid, read_manifest, restore, save_checkpoint
from simpo.config import LoraConfig, OptimConfig, TokenPolicy, TrainConfig
from simpo.doctor_command import add_doctor
from simpo.errors import ConfigError, DataError, NonFiniteStep, SimPOError
from simpo.evaluation.preference import PreferenceReport, preference_accuracy, preference_by_length
from simpo.fit import TrainState, fit
from simpo.lora import add_lora
from simpo.memory import apply_checkpointing, keep_freed_pages
from simpo.methods import METHODS, Method, method_from_dict, method_to_dict
from simpo.model import load_model, load_tokenizer
from simpo.objectives import objective_of
from simpo.packing import PairStore, TokenPair, build_plan
from simpo.policy_hash import honoured_policy, policy_record
from simpo.policy_options import add_policy_options, policy_of
from simpo.prompts import EvaluationPrompt, load_prompts
from simpo.records import load_preferences
from simpo.reference import reference_of
from simpo.score_command import add_score
from simpo.scores import score_pairs
from simpo.tokenize import tokenize_preferences

console = Console(stderr=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit code 0, 1 when training broke off or the doctor found an error, 2 for a user's mistake."""
    args = _parser().parse_args(argv)
    keep_freed_pages()
    transformers_logging.disable_progress_bar()
    try:
        code: int | None = args.run(args)
    except SimPOError as error:
        console.print(f"[red]{type(error).__name__}[/red] {error}", highlight=False)
        return 2
    except NonFiniteStep as error:
        console.print(f"[red]stopped[/red] {error}", highlight=False)
        return 1
    return code or 0


def train(args: argparse.Namespace) -> None:
    """Train one model with one method, checkpoint it, and report held-out accuracy when --eval-data is given."""
    method = _method(args.method, args.set)
    if args.reference_store is not None and not method.needs_reference:
        raise ConfigError(f"{method.name} has no reference values to keep: leave it out", "--reference-store")
    optim = OptimConfig(learning_rate=args.learning_rate, schedule=args.schedule)
    config = TrainConfig(
        steps=args.steps,
        batch_pairs=args.batch_pairs,
        token_budget=args.token_budget,
        dtype=args.dtype,
        seed=args.seed,
        lora=_lora(args),
        checkpointing=args.checkpointing,
    )
    policy = policy_of(args)
    tokenizer = load_tokenizer(args.model, chat_template=policy.chat_template)
    pairs = _pairs(args.data, tokenizer, policy)
    held_out = _pairs(args.eval_data, tokenizer, policy) if args.eval_data else None
    plan = build_plan(
        pairs,
        batch_pairs=config.batch_pairs,
        steps=config.steps,
        token_budget=config.token_budget,
        seed=config.seed,
        chosen_only=objective_of(method).chosen_only,
    )
    model = load_model(args.model, dtype=config.dtype)
    reference = None
    if method.needs_reference:
        mismatched = objective_of(method).needs_kl_batch
        reference = reference_of(model, plan, mismatched=mismatched, store=args.reference_store, seed=config.seed)
        console.print(f"reference log-probabilities: {reference.cost}", highlight=False)
        for warning in reference.cost.warnings:
            console.print(f"[yellow]warning[/yellow] {warning}", highlight=False)
    if config.lora is not None:
        add_lora(model, config.lora)
    apply_checkpointing(model, plan, config.checkpointing)
    resumed = newest_valid(args.out) if args.resume else None
    state = (
        restore(resumed, model, optim, config.steps) if resumed else TrainState.fresh(model, optim, config.steps)
    )
    recipe = {
        "method": method_to_dict(method),
        "learning_rate": optim.learning_rate,
        **policy_record(tokenizer, policy),
    }
    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=config.steps, completed=state.step)
        for report in fit(state, plan, method, reference=reference):
            line = f"loss {report.loss:.4f}  margin {report.margin:+.3f}  accuracy {report.accuracy:.2f}"
            progress.update(task, completed=report.step, description=line)
            print(json.dumps(report.metrics()))
            if report.step % args.checkpoint_every == 0 and report.step < config.steps:
                where = args.out / f"step-{report.step}"
                save_checkpoint(
                    where, model=model, tokenizer=tokenizer, state=state, manifest=recipe, servable=config.lora is None
                )
    save_checkpoint(args.out / "final", model=model, tokenizer=tokenizer, state=state, manifest=recipe)
    console.print(f"checkpoint: {args.out / 'final'}", highlight=False)
    if held_out is not None:
        _print_accuracy(_accuracy(model, held_out, config.token_budget))


def evaluate(args: argparse.Namespace) -> None:
    """Held-out preference accuracy of a model, in all and by which response is the longer, with 95 % intervals."""
    tokenizer, policy = _trained_with(args)
    pairs = _pairs(args.data, tokenizer, policy)
    scores = score_pairs(load_model(args.model), PairStore.of(pairs).evaluation_batches(args.token_budget))
    report = preference_accuracy(scores)
    print(json.dumps({**report.as_dict(), "by_length": preference_by_length(scores).as_dict()}))
    _print_accuracy(report)


def answer(args: argparse.Namespace) -> None:
    """Answer prompts given on the command line or in a file, one JSON object each."""
    given = [EvaluationPrompt(id=str(number), turns=(text,)) for number, text in enumerate(args.prompt, start=1)]
    prompts = [*given, *(load_prompts(args.prompts) if args.prompts else ())]
    if not prompts:
        raise ConfigError("there is nothing to answer: give a prompt, or a file of them as --prompts", "--prompt")
    tokenizer, policy = _trained_with(args)
    answers = answer_prompts(
        load_model(args.model),
        tokenizer,
        prompts,
        policy,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
    )
    for prompt, turns in zip(prompts, answers, strict=True):
        last = turns[-1]
        row = {"id": prompt.id, "prompt": prompt.turns[-1], "answer": last.text, "finish_reason": last.finish_reason}
        print(json.dumps(row if len(turns) == 1 else {**row, "answers": [turn.text for turn in turns]}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simpo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("train", help="train one model with one method", description=train.__doc__)
    command.set_defaults(run=train)
    _model_and_data(command)
    command.add_argument("--out", type=Path, required=True, help="where checkpoints go: step-N/ and final/")
    command.add_argument("--method", default="simpo", help=f"one of {', '.join(sorted(METHODS))} (default: simpo)")
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="hyperparameter; repeatable")
    command.add_argument("--learning-rate", type=float, required=True, help="matters most; 3e-7 to 1e-6 for 7B models")
    command.add_argument("--schedule", default="cosine", help="cosine (the paper's), wsd or constant")
    command.add_argument("--steps", type=int, required=True)
    command.add_argument("--batch-pairs", type=int, default=128, help="pairs a step (default: 128, the paper's)")
    command.add_argument("--dtype", default="float32", help="float32 or bfloat16 (float32 masters either way)")
    command.add_argument("--checkpointing", default="off", help="off, on, or auto: only when memory asks for it")
    command.add_argument("--lora-rank", type=int, metavar="RANK", help="train adapters of this rank on a frozen model")
    command.add_argument("--lora-alpha", type=float, help="adapters are scaled by alpha / rank (default: 32)")
    command.add_argument("--lora-targets", metavar="NAMES", help="q_proj,v_proj ... (default: all linear layers)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--reference-store", type=Path, metavar="DIR", help="keep reference log-probabilities there")
    command.add_argument("--eval-data", help="held-out preferences to report accuracy on")
    command.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS")
    command.add_argument("--resume", action="store_true", help="go on from the newest valid checkpoint in --out")

    command = commands.add_parser("evaluate", help="held-out preference accuracy", description=evaluate.__doc__)
    command.set_defaults(run=evaluate)
    _model_and_data(command)

    command = commands.add_parser("generate", help="answer prompts", description=answer.__doc__)
    command.set_defaults(run=answer)
    command.add_argument("--model", required=True, help="directory or hub id")
    command.add_argument("--prompt", action="append", default=[], help="repeatable")
    command.add_argument("--prompts", metavar="SOURCE", help="file or hub id of prompts or questions")
    command.add_argument("--max-new-tokens", type=int, default=256)
    command.add_argument("--temperature", type=float, default=0.7, help="0 is greedy")
    command.add_argument("--seed", type=int, default=0)
    add_policy_options(command)

    add_doctor(commands)
    add_score(commands)
    return parser


def _model_and_data(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", required=True, help="directory or hub id of the model to start from")
    command.add_argument("--data", required=True, help="preferences: jsonl, jsonl.gz, parquet, a directory or hub id")
    command.add_argument("--token-budget", type=int, default=16384, help="unique tokens of one packed micro-batch")
    add_policy_options(command)


def _trained_with(args: argparse.Namespace) -> tuple[Any, TokenPolicy]:
    """The tokenizer, and the policy in the checkpoint's manifest with what was asked for in its place."""
    tokenizer, directory = load_tokenizer(args.model), Path(args.model)
    manifest = read_manifest(directory, verify=False) if (directory / MANIFEST).exists() else {}
    policy = policy_of(args, honoured_policy(manifest, tokenizer))
    if policy.chat_template is not None:
        tokenizer.chat_template = policy.chat_template
    return tokenizer, policy


def _method(name: str, settings: Sequence[str]) -> Method:
    values: dict[str, Any] = {"name": name}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"{setting!r} is not NAME=VALUE", "--set")
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    return method_from_dict(values)


def _lora(args: argparse.Namespace) -> LoraConfig | None:
    given = {"alpha": args.lora_alpha, "targets": tuple(args.lora_targets.split(",")) if args.lora_targets else None}
    given = {key: value for key, value in given.items() if value is not None}
    if args.lora_rank is None:
        if given:
            raise ConfigError("is needed with --lora-alpha and --lora-targets", "--lora-rank")
        return None
    return LoraConfig(rank=args.lora_rank, seed=args.seed, **given)


def _pairs(source: str, tokenizer: Any, policy: TokenPolicy) -> list[TokenPair]:
    records = load_preferences(source)
    tokenized = tokenize_preferences(records, tokenizer, policy)
    dropped = dict(records.dropped)
    for reason, count in tokenized.dropped.items():
        dropped[reason] = dropped.get(reason, 0) + count
    cut = f"; truncated: {tokenized.truncated}" if tokenized.truncated else ""
    console.print(f"{source}: {len(tokenized.pairs)} pairs; dropped: {dropped or 'none'}{cut}", highlight=False)
    if not tokenized.pairs:
        raise DataError("no usable pairs are left", source)
    return tokenized.pairs


def _accuracy(model: Any, pairs: Sequence[TokenPair], token_budget: int) -> PreferenceReport:
    return preference_accuracy(score_pairs(model, PairStore.of(pairs).evaluation_batches(token_budget)))


def _print_accuracy(report: PreferenceReport) -> None:
    console.print(f"held-out preference accuracy: {report.accuracy}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
