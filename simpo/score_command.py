"""`python -m simpo score`: benchmark figures from files of judgements, whoever made them. No model, no network.

    python -m simpo score alpaca --annotations annotations.csv.gz --difficulty instruction_difficulty.csv \\
        --regularisers gamed_baselines.csv
    python -m simpo score arena --battles battles.csv --style style_metadata.csv
    python -m simpo score mt-bench --judgments judgments.jsonl --json

Files are CSV with a header, JSON lines or a JSON array, gzipped or not; extra columns are left alone. A failed or
unparsable judgement is missing: it is counted and shown, and is never a tie. --json prints {model: {figure: value}}.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from simpo.errors import ConfigError
from simpo.evaluation.bradley_terry import ROUNDS
from simpo.score_files import STYLE_CONTROLS, Scores, score_alpaca, score_arena, score_mt_bench

ALPACA = """AlpacaEval 2: the win rate against one baseline, and the win rate at equal length.

Annotations, one row a model and prompt:
  model          name of the judged model
  index          the prompt; finds its difficulty
  len_baseline, len_model    characters of the two answers
  preference     1: the baseline wins .. 2: the model wins (from the judge's log-probabilities); 0 or 1.5: a draw;
                 blank, -1 or text: the judgement failed

Per model: win_rate, standard_error, lc_win_rate (length-controlled), all in percent; lc_standard_error, wins, draws,
losses, n, missing, lc_strengths (the penalty's C as each deal of the cross-validation folds chose it).

The published lc_win_rate needs all three files. Without --regularisers the rows of the gamed baselines are absent from
the regression; without --difficulty (prompts of your own have none) its term is. Such figures compare with each other,
not with a leaderboard."""

ARENA = """Arena-Hard: Bradley-Terry scores against one baseline, with 95 % intervals.

Battles, one row a verdict, a strong one ("significantly better") as three rows:
  question_id, model_a, model_b, winner    winner is model_a, model_b or tie; anything else is a missing verdict
or the judge's own rows, whose labels are read here ([[A>>B]], [[A>B]], [[A=B]], [[B>A]], [[B>>A]], else missing):
  question_id, model, games    two objects with score or judgment; the baseline is A in the first, B in the second

Style file, one row an answer: model, question_id, token_len, header_count, list_count, bold_count.

Per model: score (percent of battles against the baseline, the baseline's own is 50), low, high, n (weighted battles),
missing; with --style also style_score, style_low, style_high: the same at the battles' average difference in style, as
the official code fits it. Those compare models of one file with each other."""

MT_BENCH = """MT-Bench: mean ratings of two turns, strictly read.

Judgments, one row a judged answer:
  model, turn    turn is 1 or 2
  score          1..10; -1, blank or out of range: the judgement failed
  judgment       the judge's text, read where there is no score: exactly one [[rating]] between 1 and 10
  category, question_id, judge    optional

Per model: first_turn, second_turn, average (over all ratings), failed, n, categories."""

_COLUMNS = {
    "alpaca": ("win_rate", "standard_error", "lc_win_rate", "n", "missing"),
    "arena": ("score", "low", "high", "style_score", "style_low", "style_high", "n", "missing"),
    "mt-bench": ("first_turn", "second_turn", "average", "n", "failed"),
}


def add_score(commands: Any) -> None:
    """Add `score` and its benchmarks to the sub-commands of a parser."""
    score = commands.add_parser(
        "score",
        help="benchmark figures from files of judgements",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    benchmarks = score.add_subparsers(required=True, metavar="BENCHMARK")

    command = _benchmark(benchmarks, "alpaca", "win rate and length-controlled win rate", ALPACA, _alpaca)
    command.add_argument("--annotations", required=True, metavar="FILE", help="one preference a model and prompt")
    command.add_argument("--difficulty", metavar="FILE", help="index, instruction_difficulty; default: no such term")
    command.add_argument(
        "--regularisers",
        metavar="FILE",
        help="judgements of gamed baselines: std_delta_len, instruction_difficulty, preference (0..1); default: none",
    )
    command.add_argument(
        "--strength", type=float, metavar="C", help="inverse L1 strength; default: chosen by cross-validation"
    )

    command = _benchmark(benchmarks, "arena", "Bradley-Terry scores against a baseline", ARENA, _arena)
    command.add_argument("--battles", required=True, metavar="FILE", help="battles, or a judge's own rows")
    command.add_argument("--baseline", metavar="MODEL", help="default: the model all others were judged against")
    command.add_argument("--style", metavar="FILE", help="style counts of every answer: adds style-controlled scores")
    command.add_argument(
        "--control", choices=sorted(STYLE_CONTROLS), help="with --style, what is held equal (default: style)"
    )
    command.add_argument("--rounds", type=int, default=ROUNDS, help=f"bootstrap rounds (default: {ROUNDS})")
    command.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")

    command = _benchmark(benchmarks, "mt-bench", "mean ratings by turn and category", MT_BENCH, _mt_bench)
    command.add_argument("--judgments", required=True, metavar="FILE", help="one judged answer a row")
    command.add_argument("--questions", metavar="FILE", help="question_id, category: where judgments name no category")
    command.add_argument("--judge", metavar="NAME", help="which judge's rows, where there are several")


def shown(benchmark: str, scores: Scores) -> Table:
    """The figures as a table, two decimals."""
    present = [name for name in _COLUMNS[benchmark] if any(name in row for row in scores.values())]
    table = Table(Column("model", overflow="fold"), box=None, header_style="bold")
    for name in present:
        table.add_column(name, justify="right", no_wrap=True)
    for model, row in scores.items():
        table.add_row(model, *(_figure(row[name]) for name in present))
    return table


def _benchmark(
    benchmarks: Any, name: str, summary: str, description: str, run: Callable[[argparse.Namespace], Scores]
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = benchmarks.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("--json", action="store_true", help="print {model: {figure: value}} instead of a table")
    command.set_defaults(run=lambda args: _show(name, run(args), args.json))
    return command


def _show(benchmark: str, scores: Scores, as_json: bool) -> None:
    # Standard output as it is now, not as it was at import: a test or a pipe may have replaced it.
    console = Console()
    if as_json:
        console.out(json.dumps(scores, indent=2, ensure_ascii=False), highlight=False)
        return
    table = shown(benchmark, scores)
    if not console.is_terminal:  # a pipe has no width: names must not be broken there
        console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table)


def _alpaca(args: argparse.Namespace) -> Scores:
    if not args.regularisers:
        text = "no --regularisers: a model that is nearly always shorter (or longer) has no sound lc_win_rate this way"
        Console(stderr=True).print(f"[yellow]note[/yellow] {text}", highlight=False)
    return score_alpaca(args.annotations, args.difficulty, args.regularisers, strength=args.strength)


def _arena(args: argparse.Namespace) -> Scores:
    if args.control and not args.style:
        raise ConfigError("what is held equal needs the counts: give --style too", "--control")
    return score_arena(
        args.battles,
        baseline=args.baseline,
        style=args.style,
        control=args.control or "style",
        rounds=args.rounds,
        seed=args.seed,
    )


def _mt_bench(args: argparse.Namespace) -> Scores:
    return score_mt_bench(args.judgments, questions=args.questions, judge=args.judge)


def _figure(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"
