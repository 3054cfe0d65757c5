"""Files of judgements -> one row of figures a model. What the files look like is in `python -m simpo score --help`.

Nothing here knows a model, a judge or a prompt set by name. A failed or unparsable judgement is missing: counted in the
row, in none of its figures. A file that is not what it should be is a DataError with file, line and remedy.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast, get_args

import numpy as np

from simpo.errors import DataError
from simpo.evaluation.alpaca import alpaca_score, checked_preference
from simpo.evaluation.arena import as_verdict, baseline_of, battles_of, parse_verdict
from simpo.evaluation.bradley_terry import ROUNDS, Battle, Style, Winner, rate
from simpo.evaluation.length_control import Regularisers, length_controlled
from simpo.evaluation.mt_bench import Rating, as_rating, mt_bench_score, parse_rating
from simpo.tables import Table, TableRow, read_table

Scores = dict[str, dict[str, Any]]
"""By model: plain JSON values; None where a figure cannot be had."""

STYLE_CONTROLS: Mapping[str, tuple[str, ...]] = {
    "style": ("token_len", "header_count", "list_count", "bold_count"),
    "length": ("token_len",),
    "markdown": ("header_count", "list_count", "bold_count"),
}
"""What can be held equal, and the columns of the style file it takes."""

_ANNOTATIONS = (
    "Annotations have one row a model and prompt: model, preference (1: the baseline wins .. 2: the model wins), and, "
    "for length control, index, len_baseline, len_model (characters)"
)
_BATTLES = (
    "Battles have one row a verdict: model_a, model_b, winner (model_a, model_b or tie), and question_id where style "
    "is controlled; or give the judge's own rows: question_id, model, games"
)
_JUDGMENTS = "Judgments have one row a judged answer: model, turn (1 or 2), and score or judgment (the judge's text)"


def score_alpaca(
    annotations: str, difficulty: str | None = None, regularisers: str | None = None, *, strength: float | None = None
) -> Scores:
    """AlpacaEval 2 by model, in order of appearance: win_rate, standard_error, lc_win_rate and what they rest on.

    difficulty, regularisers, strength: see `length_control.length_controlled`; None leaves the term, or the rows, out.
    Where annotations have no lengths, or a model has fewer than two judgements, the lc_ figures are None.
    """
    table = read_table(annotations)
    table.require("model", "preference", meaning=_ANNOTATIONS)
    lengths = {"len_baseline", "len_model"} <= set(table.columns)
    by_index = None if difficulty is None else _difficulties(difficulty)
    if by_index is not None:
        table.require("index", meaning=f"It finds a prompt's difficulty. {_ANNOTATIONS}")
    gamed = None if regularisers is None else _regularisers(regularisers)
    scores: Scores = {}
    for model, rows in _by_model(table).items():
        _check_unique(rows)
        # The folds go by order, and the order of lines in a file should mean nothing.
        rows = sorted(rows, key=_index_key)
        preferences = [_preference(row) for row in rows]
        judged = len(rows) - preferences.count(None)
        if not judged:
            raise DataError(f"all {len(rows)} judgements of {model} failed: look at the judge", annotations)
        scores[model] = asdict(alpaca_score(preferences))
        controlled = None
        if lengths and judged > 1:
            controlled = length_controlled(
                preferences,
                [row.number("len_baseline") - row.number("len_model") for row in rows],
                None if by_index is None else [_difficulty(row, by_index, str(difficulty)) for row in rows],
                regularisers=gamed,
                strength=strength,
            )
        scores[model] |= {
            "lc_win_rate": controlled and controlled.win_rate,
            "lc_standard_error": controlled and controlled.standard_error,
            "lc_strengths": controlled and list(controlled.strengths),
        }
    return scores


def score_arena(
    battles: str,
    *,
    baseline: str | None = None,
    style: str | None = None,
    control: str = "style",
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Scores:
    """Arena-Hard by model, best first: score, low, high (95 %), n battles and missing verdicts.

    battles: one row a verdict, or the judge's own rows with `games` (then the baseline must be named).
    baseline: None takes the model that all others were judged against.
    style: a file of style counts; adds style_score, style_low, style_high (control: see STYLE_CONTROLS).
    """
    table = read_table(battles)
    if "games" in table.columns:
        found, missing = _judged_games(table, baseline)
    else:
        found, missing = _battle_rows(table)
    if not found:
        raise DataError(f"none of {len(table.rows)} rows has a valid verdict: look at the judge", battles)
    against = baseline or baseline_of(found)
    rated = rate(found, against, rounds=rounds, seed=seed).scores
    scores: Scores = {
        model: {"score": each.estimate, "low": each.low, "high": each.high, "n": each.n, "missing": missing[model]}
        for model, each in rated.items()
    }
    if style is not None:
        counts = _style_counts(style, STYLE_CONTROLS[control])
        for model, each in rate(found, against, style=counts, rounds=rounds, seed=seed).scores.items():
            scores[model] |= {"style_score": each.estimate, "style_low": each.low, "style_high": each.high}
    for model in missing.keys() - scores.keys():
        raise DataError(f"all verdicts on {model} are invalid: look at the judge", battles)
    return scores


def score_mt_bench(judgments: str, *, questions: str | None = None, judge: str | None = None) -> Scores:
    """MT-Bench by model, in order of appearance: first_turn, second_turn, average, failed, n and categories.

    questions: a file with question_id and category, for judgements that do not name the category.
    judge: the judge to read where the file holds several; ratings of two judges do not average.
    """
    table = read_table(judgments)
    table.require("model", "turn", meaning=_JUDGMENTS)
    if not {"score", "judgment"} & set(table.columns):
        table.require("score", meaning=_JUDGMENTS)
    categories = {} if questions is None else _categories(questions)
    rows = _of_one_judge(table, judge)
    ratings: dict[str, list[Rating]] = {}
    for row in rows:
        ratings.setdefault(row.text("model"), []).append(_rating(row, categories))
    return {model: mt_bench_score(each)._asdict() for model, each in ratings.items()}


def _by_model(table: Table) -> dict[str, list[TableRow]]:
    rows: dict[str, list[TableRow]] = {}
    for row in table.rows:
        rows.setdefault(row.text("model"), []).append(row)
    return rows


# -- AlpacaEval


def _preference(row: TableRow) -> float | None:
    try:
        return checked_preference(row.number_or_none("preference"))
    except DataError as error:
        raise row.error(error.reason) from error


def _check_unique(rows: Iterable[TableRow]) -> None:
    seen: dict[str, int] = {}
    for row in rows:
        index = row.get("index")
        if index is not None and (before := seen.setdefault(row.text("index"), row.line)) != row.line:
            raise row.error(
                f"{row.text('model')} was judged on prompt {row.text('index')} before, on line {before}: keep one "
                "judgement a model and prompt, or the standard error is too small"
            )


def _index_key(row: TableRow) -> tuple[float, str]:
    """Numbers by value, then text by name."""
    number = row.number_or_none("index")
    return (np.inf, str(row.get("index") or "")) if number is None else (number, "")


def _difficulties(source: str) -> dict[str, float]:
    table = read_table(source)
    table.require("index", "instruction_difficulty", meaning="A difficulty file has one row a prompt with these two")
    return {row.text("index"): row.number("instruction_difficulty") for row in table.rows}


def _difficulty(row: TableRow, by_index: Mapping[str, float], source: str) -> float:
    index = row.text("index")
    if index not in by_index:
        raise row.error(
            f"{source} has no difficulty for prompt {index}: it must cover every prompt. For prompts of your own, "
            "leave --difficulty out: the term is dropped"
        )
    return by_index[index]


def _regularisers(source: str) -> Regularisers:
    table = read_table(source)
    table.require(
        *("std_delta_len", "instruction_difficulty", "preference"),
        meaning="Regularisers are judgements of gamed baselines: std_delta_len in standard deviations, preference 0..1",
    )
    preferences = [row.number("preference") for row in table.rows]
    for row, preference in zip(table.rows, preferences, strict=True):
        if not 0 <= preference <= 1:
            raise row.error(f"a regulariser's preference of {preference:g} is not in 0..1: subtract 1 from 1..2")
    return Regularisers(
        std_delta_len_N=np.array([row.number("std_delta_len") for row in table.rows]),
        difficulty_N=np.array([row.number("instruction_difficulty") for row in table.rows]),
        preference_N=np.array(preferences),
        baselines=len({row.get("model") for row in table.rows}) if "model" in table.columns else 2,
    )


# -- Arena-Hard


def _battle_rows(table: Table) -> tuple[list[Battle], Counter[str]]:
    table.require("model_a", "model_b", "winner", meaning=_BATTLES)
    battles: list[Battle] = []
    missing = Counter[str]()
    for row in table.rows:
        a, b = row.text("model_a"), row.text("model_b")
        if a == b:
            raise row.error(f"{a} is on both sides of this battle: remove the row")
        winner = str(row.get("winner")).strip()
        winner = "tie" if winner == "tie (bothbad)" else winner  # the Arena's word for two bad answers
        if winner in get_args(Winner):
            question = str(row.get("question_id") or "")
            battles.append(Battle(question, a, b, cast(Winner, winner)))
        else:
            missing.update((a, b))
    return battles, missing


def _judged_games(table: Table, baseline: str | None) -> tuple[list[Battle], Counter[str]]:
    table.require("question_id", "model", "games", meaning=_BATTLES)
    if baseline is None:
        reason = "these are a judge's own rows, which do not say whom the models were judged against: give --baseline"
        raise DataError(reason, table.source)
    battles: list[Battle] = []
    missing = Counter[str]()
    for row in table.rows:
        games = row.get("games")
        if not isinstance(games, list) or not all(isinstance(game, dict) for game in games):
            raise row.error('games must be a list of objects with "score" (a verdict such as "A>B") or "judgment"')
        verdicts = [
            as_verdict(game["score"]) if game.get("score") is not None else parse_verdict(game.get("judgment"))
            for game in games
        ]
        try:
            played = battles_of(row.text("question_id"), row.text("model"), baseline, verdicts)
        except DataError as error:
            raise row.error(error.reason) from error
        battles += played.battles
        missing.update({row.text("model"): played.missing, baseline: played.missing})
    return battles, missing


def _style_counts(source: str, columns: Sequence[str]) -> Style:
    table = read_table(source)
    table.require("model", "question_id", *columns, meaning="A style file has one row an answer, with counts")
    return {
        (row.text("model"), row.text("question_id")): [row.number(column) for column in columns] for row in table.rows
    }


# -- MT-Bench


def _of_one_judge(table: Table, wanted: str | None) -> list[TableRow]:
    named = [(_judge(row), row) for row in table.rows]
    judges = list(dict.fromkeys(name for name, _ in named if name is not None))
    if wanted is not None:
        if wanted not in judges:
            raise DataError(f"no row was judged by {wanted!r} (judges: {', '.join(judges) or 'none'})", table.source)
        return [row for name, row in named if name == wanted]
    if len(judges) > 1:
        raise DataError(
            f"the rows come from {len(judges)} judges ({', '.join(judges)}), whose ratings do not average: choose one "
            "with --judge",
            table.source,
        )
    return list(table.rows)


def _judge(row: TableRow) -> str | None:
    """The judge's model; FastChat writes [model, template]."""
    judge = row.get("judge")
    judge = judge[0] if isinstance(judge, list) and judge else judge
    return judge if isinstance(judge, str) else None


def _rating(row: TableRow, categories: Mapping[str, str]) -> Rating:
    turn = row.number_or_none("turn")
    if turn not in (1, 2):
        raise row.error(f"turn must be 1 or 2, not {row.get('turn')!r}")
    if row.get("score") is not None:
        score = as_rating(row.number_or_none("score"))
    else:
        text = row.get("judgment")
        score = parse_rating(text if isinstance(text, str) else None)
    category = row.get("category")
    if category is None and row.get("question_id") is not None:
        category = categories.get(row.text("question_id"))
    return Rating(int(turn), score, None if category is None else str(category))


def _categories(source: str) -> dict[str, str]:
    table = read_table(source)
    table.require("question_id", "category", meaning="A question file has one row a question with these two")
    return {row.text("question_id"): row.text("category") for row in table.rows}
