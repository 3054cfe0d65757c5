"""`python -m simpo doctor`: what is wrong with preference data, before any accelerator-hour is spent.

    python -m simpo doctor pairs.jsonl --eval held_out.jsonl --tokenizer DIR --max-length 1024
    python -m simpo doctor pairs.jsonl --json

Exit code 0; 1 when a finding is an error; 2 when the data cannot be read.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from simpo.doctor.diagnosis import Diagnosis, examine
from simpo.model import load_tokenizer
from simpo.policy_options import add_policy_options, policy_of
from simpo.records import Records, load_preferences

_STYLE = {"error": "red", "warning": "yellow", "info": "cyan"}


def add_doctor(commands: Any) -> None:
    """Add `doctor` to the sub-commands of a parser."""
    command = commands.add_parser(
        "doctor",
        help="what is wrong with preference data, before training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=doctor)
    command.add_argument("data", metavar="DATA", help="preferences: jsonl, jsonl.gz, parquet, a directory or hub id")
    command.add_argument("--eval", metavar="DATA", help="evaluation preferences: is any prompt of them trained on?")
    command.add_argument("--tokenizer", metavar="MODEL", help="directory or hub id: look at tokens as training does")
    command.add_argument("--json", action="store_true", help="one JSON object instead of a report for people")
    add_policy_options(command)


def doctor(args: argparse.Namespace) -> int:
    """Look at a file of preferences; 1 where training on it would go wrong, else 0."""
    policy = policy_of(args)
    tokenizer = None
    if args.tokenizer is not None:
        tokenizer = load_tokenizer(args.tokenizer, chat_template=policy.chat_template)
    with _progress() as told:
        records = _read(args.data, told)
        evaluation = None if args.eval is None else _read(args.eval, told)
        diagnosis = examine(
            records,
            evaluation=evaluation,
            tokenizer=tokenizer,
            policy=policy,
            progress=lambda done, total: told("tokenising", done, total),
        )
    out = Console()
    if args.json:
        out.print(
            json.dumps({"data": args.data, "eval": args.eval, **diagnosis.as_dict()}), markup=False, soft_wrap=True
        )
    else:
        for line in report_lines(args.data, diagnosis):
            out.print(line, soft_wrap=True)
    return 0 if diagnosis.ok else 1


def report_lines(name: str, diagnosis: Diagnosis) -> Iterator[Text]:
    """The report for people, line by line."""
    yield Text(f"{name}: {diagnosis.rows} rows, {diagnosis.pairs} pairs", style="bold")
    if diagnosis.lengths:
        yield Text(_lengths(diagnosis.lengths))
    if diagnosis.truncation:
        yield Text(_truncation(diagnosis.truncation))
    for each in diagnosis.findings:
        rows = f"  [{', '.join(each.rows)}{', ...' if each.count > len(each.rows) else ''}]" if each.rows else ""
        yield Text.assemble(
            "\n", (f"{each.level:8}", _STYLE[each.level]), (each.code, "bold"), f"  {each.message}", rows
        )
        yield Text(f"        {each.remedy}", style="dim")
    errors = sum(each.level == "error" for each in diagnosis.findings)
    yield Text("\nready to train on" if diagnosis.ok else f"\n{errors} error{'s' * (errors != 1)}: mend the data first")


def _lengths(figures: dict[str, Any]) -> str:
    unit = figures["unit"]
    return (
        f"answers: chosen {figures['chosen_mean']:.0f} {unit}, rejected {figures['rejected_mean']:.0f}; chosen minus "
        f"rejected: mean {figures['gap_mean']:+.1f}, median {figures['gap_median']:+.1f}; chosen longer "
        f"{figures['chosen_longer']:.0%}, shorter {figures['rejected_longer']:.0%}"
    )


def _truncation(figures: dict[str, Any]) -> str:
    return (
        f"max_length {figures['max_length']} ({figures['rule']}): {figures['over']} pairs over it, "
        f"{figures['dropped']} dropped, {figures['tokens_cut']} tokens cut; longest {figures['longest']}, 99 % within "
        f"{figures['max_length_for_99_percent']}"
    )


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar on stderr that only long files live to see."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=None)

        def told(what: str, done: int, total: int | None) -> None:
            progress.update(task, description=what, completed=done, total=total)

        yield told


def _read(source: str, told: Callable[[str, int, int | None], None]) -> Records:
    def number(row: int) -> None:
        if row % 500 == 0:  # a redraw a row would cost more than reading it
            told(f"reading {source}", row, None)

    return load_preferences(source, progress=number)
