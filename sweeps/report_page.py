"""The HTML of a report: one file that needs no network, now or in ten years.

Plotly's JavaScript stands in the page once; a content security policy forbids the page to load anything. Figures are
Plotly's JSON written here as plain dicts.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sweeps.report_figures import curves, scatter
from sweeps.report_search import panels

Json = dict[str, Any]

_TITLES = {"learning_rate": "lr", "gamma_beta_ratio": "gamma/beta"}
_PROBES = ("win_rate", "accuracy", "length_ratio", "empty_rate")


def page(spec: Mapping[str, Any], facts: Mapping[str, Any], trials: Sequence[Json]) -> str:
    """The whole document. `facts` is report.json; `trials` are dicts of sweeps.report.trial_facts."""
    metric = str((spec.get("objective") or {}).get("metric") or "win_rate")
    winner = facts["best"].get("trial_id")
    figures = {
        "loss": curves(trials, "loss", winner=winner, log=True),
        "margin": curves(trials, "margin", winner=winner, log=False),
        **{f"scatter-{key}": figure for key, figure in scatter(trials, metric=metric, winner=winner).items()},
    }
    sections = [
        _headline(facts, metric),
        _answers(facts),
        figure_boxes("Search", "Each dot is a trial; the star is the winner.", [k for k in figures if "scatter" in k]),
        figure_boxes("Training", "Losses of different beta are not comparable; a falling one is.", ["loss", "margin"]),
        _leaderboard(trials, winner, metric),
        *(
            f'<h2>{escape(panel.title)}</h2><p class="note">{escape(panel.note)}</p>{table(panel.head, panel.rows)}'
            for panel in panels(facts)
        ),
        _pairs("Dropped rows", facts.get("dropped_rows") or {}, empty="No row was dropped."),
        _pairs("Truncated rows", facts.get("truncated_rows") or {}, empty="No row was cut."),
        _pairs("Reference log-probabilities", _reference(facts.get("reference") or {}), empty="None were needed: 0 s."),
        _pairs("Seconds by phase", {key: f"{value:.1f}" for key, value in facts["seconds"].items()}, empty=""),
        _pairs("Versions", facts.get("versions") or {}, empty=""),
        f"<details><summary>Spec</summary><pre>{escape(json.dumps(spec, indent=2))}</pre></details>",
    ]
    return document(f"{facts.get('name') or 'sweep'}: report", sections, figures)


def document(title: str, sections: Sequence[str], figures: Mapping[str, Json]) -> str:
    """A page of its own: HTML sections, and Plotly figures that fill the elements of their names."""
    from plotly.offline import get_plotlyjs  # noqa: PLC0415  # lazy: 5 MB of JavaScript, needed only when writing

    return _DOCUMENT.format(
        title=escape(title),
        style=_STYLE,
        plotly=get_plotlyjs(),
        body="\n".join(sections),
        # "</script>" and "<!--" inside a string would end the script element: no "<" is written at all.
        figures=json.dumps(figures).replace("<", "\\u003c"),
    )


def figure_boxes(title: str, note: str, names: Sequence[str]) -> str:
    """A headed row of empty elements, for figures of these names."""
    boxes = "".join(f'<div class="figure" id="{escape(name)}"></div>' for name in names)
    return (
        f'<h2>{escape(title)}</h2><p class="note">{escape(note)}</p><div class="figures">{boxes}</div>' if names else ""
    )


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, best: bool = False, kind: str = "") -> str:
    """`best`: the first row is the winner's."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr{' class=best' if best and not index else ''}>"
        + "".join(f"<td{' class=num' if _narrow(v) else ''}>{escape(number(v))}</td>" for v in row)
        + "</tr>"
        for index, row in enumerate(rows)
    )
    thead = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table class="{kind}">{thead}<tbody>{body}</tbody></table></div>'


def interval(value: Mapping[str, Any] | None) -> str:
    """`0.642 (0.610 to 0.673, n = 500)`, or a dash."""
    if not value or value.get("estimate") is None:
        return "-"
    return f"{value['estimate']:.3f} ({value['low']:.3f} to {value['high']:.3f}, n = {value['n']})"


def number(value: Any) -> str:
    """A value for a table cell."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return interval(value)
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.2e}" if value and not 1e-3 <= abs(value) < 1e5 else f"{value:.4g}"


def _headline(facts: Mapping[str, Any], metric: str) -> str:
    best, accuracy = facts["best"], facts.get("accuracy") or {}
    point = ", ".join(f"{_TITLES.get(key, key)} {number(value)}" for key, value in best["hyperparameters"].items())
    counts = ", ".join(f"{count} {state.lower()}" for state, count in facts["trials"].items())
    memory = facts.get("peak_memory_bytes")
    cards = [
        ("Win rate over the base", *_estimate(facts.get("win_rate"), facts.get("win_rate_reason") or "no judge")),
        ("Held-out accuracy, winner", *_estimate(accuracy.get("winner"), "not measured")),
        ("Held-out accuracy, base", *_estimate(accuracy.get("base"), "not measured")),
        ("Trials", str(sum(facts["trials"].values())), counts),
        ("Peak memory", f"{memory / 2**30:.1f} GiB" if memory else "-", f"seed {facts.get('seed')}"),
    ]
    body = "".join(
        f'<div class="card"><div class="label">{escape(label)}</div><div class="value">{escape(value)}</div>'
        f'<div class="note">{escape(note)}</div></div>'
        for label, value, note in cards
    )
    made = f"{best['candidate']}, made from " if best.get("candidate") else ""
    return (
        f"<h1>{escape(str(facts.get('name') or 'sweep'))}</h1>"
        f'<p class="lead">Winner: <b>{escape(str(best.get("method")))}</b>, {escape(made)}'
        f"trial {escape(str(best.get('number')))}"
        f" ({escape(point)}), chosen by {escape(metric.replace('_', ' '))}.</p>"
        f'<div class="cards">{body}</div>'
    )


def _reference(cost: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of what they took; none where nothing was needed."""
    if not cost.get("misses") and not cost.get("hits"):
        return {}
    titles = {
        "seconds": "seconds",
        "cpu_seconds": "CPU-seconds",
        "tokens": "tokens computed",
        "misses": "responses computed",
        "hits": "responses known",
        "checked": "of these computed again as a check",
    }
    return {title: cost.get(key) for key, title in titles.items()}


def _estimate(value: Mapping[str, Any] | None, otherwise: str) -> tuple[str, str]:
    """What stands large on a card, and the line below it."""
    if not value or value.get("estimate") is None:
        return "-", otherwise
    return f"{value['estimate']:.3f}", f"95 % interval {value['low']:.3f} to {value['high']:.3f}, n = {value['n']}"


def _answers(facts: Mapping[str, Any]) -> str:
    keys = ("prompt", "base", "winner")
    rows = [[answer.get(key) or "(nothing)" for key in keys] for answer in facts.get("answers") or ()]
    return f"<h2>Side by side</h2>{table(['prompt', 'base', 'winner'], rows)}" if rows else ""


def _leaderboard(trials: Sequence[Json], winner: str | None, metric: str) -> str:
    def place(trial: Json) -> tuple[bool, int]:
        return trial["trial_id"] != winner, trial["rank"] or len(trials) + trial["number"]

    params = list(dict.fromkeys(key for trial in trials for key in trial["params"]))
    probes = [key for key in _PROBES if key != metric and any(key in trial["metrics"] for trial in trials)]
    rows = [
        [
            trial["number"],
            trial["state"],
            *(trial["params"].get(key) for key in params),
            trial["step"],
            _value(trial),
            *(trial["metrics"].get(key) for key in probes),
            trial["seconds"],
            trial["reason"],
        ]
        for trial in sorted(trials, key=place)
    ]
    head = ["#", "state", *(_TITLES.get(key, key) for key in params), "step", metric.replace("_", " ")]
    head += [*(key.replace("_", " ") for key in probes), "seconds", "why it ended"]
    note = "On the rungs' data, which chose the finalists. = : its interval holds the best value, so it is tied."
    return f'<h2>Trials</h2><p class="note">{escape(note)}</p>{table(head, rows, best=bool(winner))}'


def _value(trial: Json) -> str:
    """The objective with its interval and the mark of a tie."""
    if trial["value"] is None or trial["low"] is None:
        return number(trial["value"])
    return f"{trial['value']:.3f} ({trial['low']:.3f} to {trial['high']:.3f}){' =' if trial['tied'] else ''}"


def _pairs(title: str, values: Mapping[str, Any], *, empty: str) -> str:
    if not values:
        return f"<h2>{escape(title)}</h2><p>{escape(empty)}</p>" if empty else ""
    rows = [[key.replace("_", " "), value] for key, value in values.items()]
    return f"<h2>{escape(title)}</h2>{table(['', ''], rows, kind='pairs')}"


def _narrow(value: Any) -> bool:
    """Numbers, and intervals of numbers, stay on one line."""
    return not isinstance(value, str) or (value[:1].isdigit() and len(value) < 32)


_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; background: #f5f7f9; margin: 0; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 34px 0 8px; }
.lead { margin: 0 0 18px; color: #41505f; }
.note, .label { color: #5e6c7a; font-size: 13px; }
p.note { margin: 0 0 8px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 12px; }
.card { background: #fff; border: 1px solid #dde3e9; border-radius: 8px; padding: 12px 14px; }
.value { font-size: 22px; font-weight: 600; margin: 2px 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(350px, 1fr)); gap: 12px; }
.figure { background: #fff; border: 1px solid #dde3e9; border-radius: 8px; height: 340px; overflow: hidden; }
.scroll { overflow-x: auto; background: #fff; border: 1px solid #dde3e9; border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { text-align: left; padding: 6px 10px; border-top: 1px solid #eceff2; vertical-align: top; }
td { white-space: pre-wrap; }
thead th { border-top: 0; color: #5e6c7a; font-weight: 600; white-space: nowrap; }
td.num { font-variant-numeric: tabular-nums; white-space: nowrap; }
table.pairs { max-width: 560px; }
tr.best td { background: #eaf6ee; font-weight: 600; }
details { margin-top: 34px; } summary { cursor: pointer; font-size: 18px; font-weight: 600; }
pre { background: #fff; border: 1px solid #dde3e9; border-radius: 8px; padding: 12px; overflow-x: auto; }
"""

_DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
<script>{plotly}</script>
</head>
<body><main>
{body}
</main>
<script>
const figures = {figures};
for (const [id, figure] of Object.entries(figures)) {{
  const box = document.getElementById(id);
  if (box) Plotly.newPlot(box, figure.data, figure.layout, {{responsive: true, displayModeBar: false}});
}}
</script>
</body>
</html>
"""
