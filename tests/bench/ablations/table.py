"""From the record to README's tables: the arms with their intervals, and what the paper says against what was seen.

Every interval is Student's over training seeds, 95 %. Differences are taken seed by seed: arms share base, batches and
sampling. A verdict follows from the interval alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simpo.evaluation.intervals import Estimate, mean_interval
from tests.bench.ablations.recipe import ratio_key
from tests.bench.readme import markdown

Record = dict[str, Any]

SHARES = ("win_rate", "accuracy", "exact")
"""Measures that end at 1, as their intervals must."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One finding of the paper: the measure is higher in one arm than in another."""

    says: str
    figures: str
    """The paper's own (transcribed; AlpacaEval 2 length-controlled win rate where nothing else is said)."""
    measure: str
    higher: str
    """Key of an arm, or TUNED (likewise below)."""
    lower: str


TUNED = "tuned"
"""Stands for SimPO with the gamma / beta above 0 that wins on the validation prompts."""

KEPT, AGAIN = "without length normalisation, all else kept, ", "without it, tuned again, "

CLAIMS = (
    *(
        Claim(
            says=f"{way}the win rate falls",
            figures="21.5 to 11.9; 32.1 to 19.1",
            measure="win_rate",
            higher="simpo",
            lower=arm,
        )
        for way, arm in ((KEPT, "sums-kept"), (AGAIN, "sums"))
    ),
    *(
        Claim(
            says=f"{way}answers grow",
            figures="length 1868 to 2345",
            measure="mean_tokens",
            higher=arm,
            lower="simpo",
        )
        for way, arm in ((KEPT, "sums-kept"), (AGAIN, "sums"))
    ),
    *(
        Claim(
            says=f"{way}likelihood goes with length more",
            figures="Spearman 0.34 to 0.82",
            measure="spearman",
            higher=arm,
            lower="simpo",
        )
        for way, arm in ((KEPT, "sums-kept"), (AGAIN, "sums"))
    ),
    Claim(
        says="likelihood goes with length less under SimPO than under DPO",
        figures="Spearman 0.34 against 0.59",
        measure="spearman",
        higher="dpo",
        lower="simpo",
    ),
    Claim(
        says="gamma = 0 is worse than a tuned gamma",
        figures="21.5 to 16.8; 32.1 to 30.9",
        measure="win_rate",
        higher=TUNED,
        lower=ratio_key(0),
    ),
    Claim(
        says="beyond its best the win rate falls with gamma",
        figures="Figure 3",
        measure="win_rate",
        higher=TUNED,
        lower=ratio_key(2),
    ),
    Claim(
        says="while held-out accuracy rises with gamma",
        figures="Figure 3",
        measure="accuracy",
        higher=ratio_key(2),
        lower=ratio_key(0),
    ),
    Claim(
        says="SimPO beats DPO",
        figures="21.5 against 15.1; 32.1 against 26.8",
        measure="win_rate",
        higher="simpo",
        lower="dpo",
    ),
    Claim(
        says="SimPO ranks held-out pairs better than DPO",
        figures="a figure only",
        measure="accuracy",
        higher="simpo",
        lower="dpo",
    ),
)

NAMES = {"win_rate": "win rate", "mean_tokens": "tokens", "spearman": "Spearman", "accuracy": "accuracy"}


def readme_block(record: Record) -> str:
    """All that stands between README's markers."""
    return f"{setting_text(record)}\n{arms_table(record)}\n{claims_table(record)}\n{tuning_text(record)}"


def setting_text(record: Record) -> str:
    """What was run."""
    setting = record["setting"]
    return (
        f"One base; {setting['steps']} steps of {setting['batch_pairs']} pairs, the chosen answer the longer one in "
        f"{setting['longer_share']:.0%} of them;\n{setting['prompts']} unseen prompts at temperature "
        f"{setting['temperature']:g}. Means over {setting['seeds']} training seeds with their 95 % intervals.\n"
        f"{record['cpu_minutes']:.0f} CPU-minutes on one core.\n"
    )


def arms_table(record: Record) -> str:
    """One row an arm."""
    header = ["arm", "beta", "lr", "win rate over base", "exactly right", "held-out accuracy", "Spearman, likelihood"]
    header[-1] += " and length"
    header += ["tokens", "of base's", "repetition", "ended", "log-prob of chosen"]
    rows = [_row(record, arm) for arm in record["arms"]]
    return markdown(header, rows)


def claims_table(record: Record) -> str:
    """The paper's findings, and what this record says of each."""
    rows = []
    for claim in CLAIMS:
        higher, lower = _key(record, claim.higher), _key(record, claim.lower)
        difference = paired(record, claim.measure, higher, lower)
        first, second = (_mean(record, key, claim.measure).estimate for key in (higher, lower))
        digits = _digits(claim.measure)
        names = f"`{higher}` {first:.{digits}f}, `{lower}` {second:.{digits}f}"
        seen = f"{NAMES[claim.measure]}: {names}; {_interval(difference, digits, signed=True)}"
        rows.append([claim.says, claim.figures, seen, verdict(difference)])
    return markdown(["the paper says", "its figures", "seen here: means; difference", "agrees?"], rows)


def tuning_text(record: Record) -> str:
    """How the points were chosen, and how much depends on that."""
    parts = []
    for family, name in (("simpo", "SimPO"), ("sums", "without length normalisation"), ("dpo", "DPO")):
        points = record["tuning"][family]
        rates = [point["win_rate"] for point in points]
        tokens = [point["mean_tokens"] for point in points]
        spread = f"{min(rates):.3f} to {max(rates):.3f} with {min(tokens):.1f} to {max(tokens):.1f} tokens"
        parts.append(f"{name}, {len(points)} points, {spread}")
    return (
        "Beta and learning rate (and gamma, on sums) were chosen by win rate on "
        f"{record['setting']['validation_prompts']} other prompts. What the grids saw there:\n{'; '.join(parts)}.\n"
    )


def verdict(difference: Estimate) -> str:
    """Whether the expected difference (above 0) was seen."""
    if difference.low > 0:
        return "yes"
    return "no, the opposite" if difference.high < 0 else "not told apart"


def paired(record: Record, measure: str, higher: str, lower: str) -> Estimate:
    """Mean over seeds of one arm's measure minus another's, on the evaluation set."""
    values = zip(_values(record, higher, measure), _values(record, lower, measure), strict=True)
    return mean_interval([a - b for a, b in values])


def tuned_key(record: Record) -> str:
    """The SimPO arm with gamma above 0 that has the best mean win rate on the validation prompts."""
    positive = ["simpo", *(ratio_key(ratio) for ratio in record["setting"]["ratios"] if ratio > 0)]
    return max(positive, key=lambda key: _mean(record, key, "win_rate", "validation").estimate)


def _key(record: Record, key: str) -> str:
    return tuned_key(record) if key == TUNED else key


def _row(record: Record, arm: dict[str, Any]) -> list[str]:
    key = arm["key"]
    method = arm["method"]

    def cell(measure: str) -> str:
        return _interval(_mean(record, key, measure), _digits(measure), share=measure in SHARES)

    def plain(value: Callable[[dict[str, Any], dict[str, Any]], float], digits: int, sign: str = "") -> str:
        pairs = zip(_seeds(record, key), _seeds(record, "base"), strict=True)
        values = [value(own, base) for own, base in pairs]
        return f"{sum(values) / len(values):{sign}.{digits}f}"

    return [
        f"`{key}` {arm['label']}",
        f"{method['beta']:g}" if method else "",
        f"{arm['learning_rate']:.2g}" if method else "",
        cell("win_rate") if method else "",
        plain(lambda own, base: own["exact"], 2),
        cell("accuracy"),
        cell("spearman"),
        cell("mean_tokens"),
        plain(lambda own, base: own["mean_tokens"] / base["mean_tokens"], 2),
        plain(lambda own, base: own["repetition"], 3),
        plain(lambda own, base: own["eos_rate"], 3),
        plain(lambda own, base: own["chosen_mean"], 2),
    ]


def _seeds(record: Record, key: str, split: str = "evaluation") -> list[dict[str, Any]]:
    (arm,) = (arm for arm in record["arms"] if arm["key"] == key)
    return [seed[split] for seed in arm["seeds"]]


def _values(record: Record, key: str, measure: str, split: str = "evaluation") -> list[float]:
    return [seed[measure] for seed in _seeds(record, key, split)]


def _mean(record: Record, key: str, measure: str, split: str = "evaluation") -> Estimate:
    return mean_interval(_values(record, key, measure, split))


def _digits(measure: str) -> int:
    return {"mean_tokens": 2, "spearman": 2}.get(measure, 3)


def _interval(estimate: Estimate, digits: int, *, share: bool = False, signed: bool = False) -> str:
    low, high = (max(0.0, estimate.low), min(1.0, estimate.high)) if share else (estimate.low, estimate.high)
    sign = "+" if signed else ""
    return f"{estimate.estimate:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
