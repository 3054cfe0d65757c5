"""A comparison for people: a table in Markdown, and a page with tuning curves that needs no network.

Read from comparison.json alone (`sweeps.comparison_result`); no Ray, no torch.
"""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from sweeps.report_page import document, figure_boxes, table

Json = dict[str, Any]

STEM = "comparison"
COLOURS = ("#0f7b3e", "#2f6fb7", "#c2571a", "#8a4fbf", "#b3261e", "#00838f", "#7a6a00", "#d81b7a", "#4e5b66", "#5d9c1f")


def write_comparison(result: Mapping[str, Any], spec: Mapping[str, Any], directory: Path) -> tuple[Path, Path]:
    """Write the table (comparison, .md) and the page (.html), each by rename; returns their paths in this order."""
    table_path, page_path = directory / f"{STEM}.md", directory / f"{STEM}.html"
    for path, text in ((table_path, markdown(result)), (page_path, page(result, spec))):
        partial = path.with_name(f".{path.name}")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    return table_path, page_path


def markdown(result: Mapping[str, Any]) -> str:
    """The table, and below it every verdict."""
    titles = head(result)
    lines = [titles, ["---"] * len(titles), *cells(result)]
    rows = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    decided = [verdict["text"] for verdict in result["verdicts"] if verdict["above"]]
    pairs = len(result["verdicts"])
    rest = [f"undecided: {pairs - len(decided)} of {pairs} pairs"] if len(decided) < pairs else []
    listed = "".join(f"* {text}\n" for text in [*decided, *rest])
    warned = "".join(f"* not the same budget: {text}\n" for text in result["unequal"])
    return f"{rows}\n{listed}{warned}"


def head(result: Mapping[str, Any]) -> list[str]:
    """Titles of the table's columns."""
    ranked_by = result["leaderboard"][0]["ranked_by"]
    metric = "win rate over the base" if ranked_by == "win_rate" else "held-out accuracy"
    bests = [f"best of {n}" for n in _budgets(result)]
    return ["#", "method", metric, "tied with", *bests, "above, from budget", "trials", "steps"]


def cells(result: Mapping[str, Any]) -> list[list[str]]:
    """One row a method, best first: finals, median best of so many random trials with its band, verdicts, effort."""
    rows = []
    for row in result["leaderboard"]:
        curve = result["curves"].get(row["name"])
        above = [v for v in result["verdicts"] if v["above"] == row["name"]]
        beaten = [f"{next(n for n in v['pair'] if n != row['name'])} ({v['from']})" for v in above]
        states = ", ".join(f"{count} {state.lower()}" for state, count in row["trials"].items())
        rows.append(
            [
                str(row["rank"]),
                row["name"],
                _estimate(row["figure"]) if row["figure"] else f"none: {row['failure'] or 'no result'}",
                ", ".join(row["tied_with"]) or "-",
                *(_best_of(curve, n) for n in _budgets(result)),
                ", ".join(beaten) or "-",
                states,
                str(row["steps"]),
            ]
        )
    return rows


def page(result: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    """The whole HTML document."""
    verdicts = [[v["text"]] for v in sorted(result["verdicts"], key=lambda v: v["above"] is None)]
    budget, best = result["budget"], result["leaderboard"][0]
    each = f"{budget['trials']} trials" if budget["rule"] == "trials" else f"{budget['total_steps']} steps"
    sections = [
        f"<h1>{escape(str(result['name']))}</h1>",
        f'<p class="lead">{len(result["leaderboard"])} methods, {escape(each)} each; {result["random_stratum"]} trials '
        f"of each are random. The best winner is <b>{escape(best['name'])}</b>'s.</p>",
        f"<h2>Leaderboard</h2>{table(head(result), cells(result), best=True)}",
        figure_boxes("Tuning curves", _NOTE, ["tuning"]),
        f"<h2>Verdicts</h2>{table([''], verdicts)}",
        f"<h2>Effort</h2>{table(*_effort(result))}",
        *(f"<p>Not the same budget: {escape(text)}</p>" for text in result["unequal"]),
        f"<details><summary>Spec</summary><pre>{escape(json.dumps(spec, indent=2))}</pre></details>",
    ]
    return document(f"{result['name']}: comparison", sections, {"tuning": tuning_figure(result)})


_NOTE = (
    "How good the best of n random trials is. Line: half of all searches of n trials do at least this well; shaded: "
    "that line lies here at all n at once, with 97.5 % for each method; dotted: the expected best. The shading ends "
    "where so few random trials say nothing from above. Click a name to hide it."
)


def tuning_figure(result: Mapping[str, Any]) -> Json:
    """Plotly's JSON of all tuning curves; a band is drawn as far as it has both ends."""
    traces: list[Json] = []
    for place, (name, curve) in enumerate(result["curves"].items()):
        colour, shown = COLOURS[place % len(COLOURS)], escape(name)
        until = curve["horizon"]
        budgets = list(range(1, curve["random_trials"] + 1))
        low, high = curve["low"][:until], curve["high"][:until]
        common = {"type": "scatter", "legendgroup": shown, "name": shown}
        line = {"color": colour, "width": 2}
        traces.append(
            common
            | {"x": budgets[:until] + budgets[:until][::-1], "y": high + low[::-1], "fill": "toself"}
            | {
                "fillcolor": f"{colour}22",
                "line": {"width": 0},
                "mode": "lines",
                "showlegend": False,
                "hoverinfo": "skip",
            }
        )
        traces.append(common | {"x": budgets, "y": curve["median"], "mode": "lines+markers", "line": line})
        traces.append(
            common
            | {"x": budgets, "y": curve["expected"], "mode": "lines", "line": line | {"dash": "dot", "width": 1}}
            | {"showlegend": False}
        )
    metric = str(result["objective"]["metric"]).replace("_", " ")
    layout = {
        "xaxis": {"title": {"text": "random trials"}, "gridcolor": "#e8ecf0"},
        "yaxis": {"title": {"text": f"best {metric}"}, "gridcolor": "#e8ecf0"},
        "margin": {"l": 64, "r": 16, "t": 24, "b": 48},
        "paper_bgcolor": "#fff",
        "plot_bgcolor": "#fff",
        "font": {"family": "system-ui, sans-serif", "size": 12},
    }
    return {"data": traces, "layout": layout}


def _budgets(result: Mapping[str, Any]) -> list[int]:
    """1, and the largest budget of which every curve says something from above."""
    until = min((curve["horizon"] for curve in result["curves"].values()), default=1)
    return sorted({1, max(1, until)})


def _best_of(curve: Mapping[str, Any] | None, n: int) -> str:
    if curve is None or n > curve["random_trials"]:
        return "-"
    low, high = (_short(curve[end][n - 1]) for end in ("low", "high"))
    return f"{_short(curve['median'][n - 1])} ({low} to {high})"


def _effort(result: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Steps and seconds of each method; what its reference log-probabilities took stands apart."""
    rows = [
        [
            row["name"],
            row["steps"],
            f"{row['trial_seconds']:.1f}",
            f"{(row['reference'] or {}).get('seconds', 0.0):.1f}",
            (row["reference"] or {}).get("misses", 0),
            (row["reference"] or {}).get("hits", 0),
        ]
        for row in result["leaderboard"]
    ]
    return ["method", "steps", "seconds in trials", "seconds for references", "computed", "known already"], rows


def _estimate(value: Mapping[str, Any]) -> str:
    return f"{value['estimate']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _short(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"
