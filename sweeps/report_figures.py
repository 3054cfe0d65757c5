"""The figures of a report, as Plotly's JSON in plain dicts: {"data": traces, "layout": layout}."""

from collections.abc import Sequence
from typing import Any, TypeGuard

Json = dict[str, Any]

_COLOURS = {
    "COMPLETE": "#7f9cc0",
    "PRUNED": "#c9ced4",
    "INFEASIBLE": "#d68fd6",
    "FAILED": "#e08080",
    "RUNNING": "#a8d5ba",
}
_WINNER = "#0f7b3e"
_TITLES = {
    "learning_rate": "learning rate",
    "gamma_beta_ratio": "gamma / beta",
    "gamma": "gamma",
}
_LOGARITHMIC = frozenset({"learning_rate", "beta", "gamma"})


def curves(trials: Sequence[Json], quantity: str, *, winner: str | None, log: bool) -> Json:
    """`quantity` of the training batches over optimiser steps, one line a trial, the winner's on top."""
    traces: list[Json] = []
    named: set[str] = set()
    for trial in sorted(trials, key=lambda trial: trial["trial_id"] == winner):
        if not trial["curve"]["step"]:
            continue
        wins = trial["trial_id"] == winner
        group = "winner" if wins else trial["state"].lower()
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": trial["curve"]["step"],
                "y": trial["curve"][quantity],
                "name": group,
                "legendgroup": group,
                "showlegend": group not in named,
                "line": {
                    "width": 3 if wins else 1.5,
                    "color": _WINNER if wins else _COLOURS.get(trial["state"], "#999"),
                },
                "hovertemplate": f"{_label(trial)}<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
            }
        )
        named.add(group)
    layout = _layout(quantity)
    layout["xaxis"]["title"] = {"text": "optimiser step"}
    layout["yaxis"] |= {"type": "log" if log else "linear", "title": {"text": quantity}}
    return {"data": traces, "layout": layout}


def scatter(trials: Sequence[Json], *, metric: str, winner: str | None) -> dict[str, Json]:
    """Learning rate against each other hyperparameter, coloured by the metric; by key of that hyperparameter.

    With beta and gamma / beta there is a third figure: beta against the margin gamma they make.
    """
    points = [trial | {"params": _with_gamma(trial["params"])} for trial in trials]
    keys = list(dict.fromkeys(key for trial in points for key, value in trial["params"].items() if _is_number(value)))
    pairs = {key: ("learning_rate", key) for key in keys if key not in ("learning_rate", "gamma")}
    if "gamma" in keys:
        pairs["gamma"] = ("beta", "gamma")
    return {key: _scatter_figure(points, x, y, metric, winner) for key, (x, y) in pairs.items()}


def _scatter_figure(trials: Sequence[Json], x: str, y: str, metric: str, winner: str | None) -> Json:
    shown = [t for t in trials if _is_number(t["params"].get(x)) and _is_number(t["params"].get(y))]
    values = [trial["value"] if trial["value"] is not None else trial["metrics"].get(metric) for trial in shown]
    wins = [trial["trial_id"] == winner for trial in shown]
    trace: Json = {
        "type": "scatter",
        "mode": "markers",
        "x": [trial["params"][x] for trial in shown],
        "y": [trial["params"][y] for trial in shown],
        "text": [f"{_label(t)}<br>{metric}: {_short(v)}" for t, v in zip(shown, values, strict=True)],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": values,
            "colorscale": "Viridis",
            "colorbar": {"title": {"text": metric.replace("_", " ")}, "thickness": 12},
            "size": [18 if star else 11 for star in wins],
            "symbol": ["star" if star else "circle" for star in wins],
            "line": {"width": 1, "color": "#333"},
        },
    }
    layout = _layout(f"{_TITLES.get(y, y)} over {_TITLES.get(x, x)}")
    for axis, key in (("xaxis", x), ("yaxis", y)):
        positive = all(trial["params"][key] > 0 for trial in shown)
        layout[axis] |= {
            "type": "log" if key in _LOGARITHMIC and positive else "linear",
            "title": {"text": _TITLES.get(key, key)},
        }
    return {"data": [trace], "layout": layout}


def _layout(title: str) -> Json:
    axis = {"gridcolor": "#e8ecf0", "zeroline": False, "exponentformat": "power"}
    return {
        "title": {"text": title, "font": {"size": 14}, "x": 0.02},
        "xaxis": dict(axis),
        "yaxis": dict(axis),
        "margin": {"l": 64, "r": 16, "t": 44, "b": 48},
        "paper_bgcolor": "#fff",
        "plot_bgcolor": "#fff",
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "legend": {"orientation": "h", "y": 1.1, "x": 1, "xanchor": "right"},
        "hovermode": "closest",
    }


def _with_gamma(params: Json) -> Json:
    beta, ratio = params.get("beta"), params.get("gamma_beta_ratio")
    return params | {"gamma": beta * ratio} if _is_number(beta) and _is_number(ratio) else params


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _label(trial: Json) -> str:
    point = ", ".join(f"{key} {_short(value)}" for key, value in trial["params"].items())
    # Plotly reads a little HTML in labels: a value that came from a person must not be markup.
    return f"trial {trial['number']} ({trial['state'].lower()}): {point}".replace("<", "&lt;")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
