"""Bradley-Terry ratings of models from battles, against one baseline, with bootstrap intervals and style control.

Source: lm-sys/arena-hard-auto, `utils_math.py` (`compute_mle_elo`, `construct_style_matrices`, `fit_bt`).

    logit P(a beats b) = r_a - r_b + sum_k w_k z_k        a tie counts half for each; without style there is no z

A score is 100 * P(the model beats the baseline), so the baseline's own is 50. The style features have mean 0 over all
battles, as in the official code: a style-controlled score is the one at the battles' average difference in style, so it
compares with other models' scores of the same fit, not with 50. Equal battles are counted once with a weight, and a
bootstrap round draws those counts (multinomial, which is what drawing rows amounts to).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import expit

from simpo.errors import ConfigError, DataError
from simpo.evaluation.intervals import Estimate

Winner = Literal["model_a", "model_b", "tie"]
Style = Mapping[tuple[str, str], Sequence[float]]
"""(model, question) -> counts of its answer: tokens, headers, lists, bold, or some of these."""

ROUNDS = 1000
"""Bootstrap rounds. The official 100 leave half a point of noise in each bound; a round takes under a millisecond."""

_WON: Mapping[str, float] = {"model_a": 1.0, "tie": 0.5, "model_b": 0.0}


class Battle(NamedTuple):
    """One judged pair. A verdict of weight 3 is three equal battles."""

    question: str
    model_a: str
    model_b: str
    winner: Winner


class Ratings(NamedTuple):
    """Every model's score against the baseline, best first, and what style alone is worth."""

    scores: dict[str, Estimate]
    """Percent; the interval holds 95 % of the bootstrap rounds, n counts weighted battles."""
    style: tuple[float, ...]
    """w_k: log-odds a standard deviation of the k-th style feature is worth. Empty without style control."""


def rate(
    battles: Sequence[Battle],
    baseline: str,
    *,
    style: Style | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Ratings:
    """Scores of all models in these battles.

    style: None fits the plain model by maximum likelihood. Otherwise z_k = (s_a - s_b) / (s_a + s_b + 1), standardised
        over the battles, and the official ridge (scikit-learn's C = 1 on every battle twice, ratings times ln 10).
    rounds: bootstrap rounds. seed: of their draws.
    Raises DataError: no battle, a model that no chain of battles joins to the baseline, a battle without style counts.
    ConfigError: fewer than one round.
    """
    if rounds < 1:
        raise ConfigError(f"at least one bootstrap round is needed, not {rounds}", "rounds")
    if not battles:
        raise DataError("there is no battle with a valid verdict: look at the judge")
    models = list(dict.fromkeys(model for battle in battles for model in battle[1:3]))
    _check_joined(battles, models, baseline)
    if style is None:  # the question matters to style alone: without it, more battles are equal
        battles = [battle._replace(question="") for battle in battles]
    cells = Counter(battles)
    design = _design(list(cells), models, baseline, style, list(cells.values()))
    counts_K = np.array(list(cells.values()), dtype=float)
    ratings_D = design.fit(counts_K, np.zeros(design.x_KD.shape[1]))
    n = int(counts_K.sum())
    draws_RK = np.random.default_rng(seed).multinomial(n, counts_K / n, size=rounds)
    # Starting from the full fit, a round takes three or four Newton steps.
    drawn_RM = np.array([design.scores(design.fit(each_K, ratings_D), each_K) for each_K in draws_RK])
    scores_M = design.scores(ratings_D, counts_K)
    weight = Counter[str]()
    for cell, count in cells.items():
        weight.update({cell.model_a: count, cell.model_b: count})
    scores = {
        model: Estimate(float(scores_M[i]), *_interval(drawn_RM[:, i]), weight[model]) for i, model in enumerate(models)
    }
    ordered = dict(sorted(scores.items(), key=lambda item: -item[1].estimate))
    return Ratings(ordered, tuple(ratings_D[design.ratings :].tolist()))


class _Design(NamedTuple):
    """The logistic regression: K kinds of battle, D columns (ratings, then style)."""

    x_KD: np.ndarray
    won_K: np.ndarray
    """Share of the battle that goes to model_a: 1, 1/2 or 0."""
    ridge: float
    ratings: int
    """Columns that are ratings. Plain: all models but the baseline, whose rating is 0. Style: all models."""
    to_score_MD: np.ndarray
    """Row m times the coefficients = r_m - r_baseline."""
    plays_KM: np.ndarray
    """Whether model m takes part in battle k."""

    def fit(self, counts_K: np.ndarray, start_D: np.ndarray) -> np.ndarray:
        """Coefficients of the highest (penalised) likelihood, by Newton's method with step halving."""
        weight_K = 2.0 * counts_K  # the official code lists every battle twice; only the ridge can tell
        w_D, loss = start_D, self._loss(weight_K, start_D)
        for _ in range(100):
            p_K = expit(self.x_KD @ w_D)
            gradient_D = self.x_KD.T @ (weight_K * (p_K - self.won_K)) + self.ridge * w_D
            if abs(gradient_D).max() < 1e-9 * weight_K.sum():
                break
            hessian_DD = (self.x_KD.T * (weight_K * p_K * (1 - p_K))) @ self.x_KD
            # 1e-9 only keeps the matrix regular where a model always wins or was not drawn.
            step_D = np.linalg.solve(hessian_DD + (self.ridge + 1e-9) * np.eye(len(w_D)), gradient_D)
            size = min(1.0, 5.0 / max(abs(step_D).max(), 1e-30))
            while size > 1e-6 and (new := self._loss(weight_K, w_D - size * step_D)) > loss:
                size /= 2
            w_D = w_D - size * step_D
            loss = new
        return w_D

    def scores(self, w_D: np.ndarray, counts_K: np.ndarray) -> np.ndarray:
        """100 * P(model m beats the baseline); NaN where the model fought no battle of this draw."""
        scores_M: np.ndarray = 100 * expit(self.to_score_MD @ w_D)
        return np.where((counts_K > 0) @ self.plays_KM, scores_M, np.nan)

    def _loss(self, weight_K: np.ndarray, w_D: np.ndarray) -> float:
        z_K = self.x_KD @ w_D
        loss_K = self.won_K * np.logaddexp(0, -z_K) + (1 - self.won_K) * np.logaddexp(0, z_K)
        return float(weight_K @ loss_K + self.ridge / 2 * w_D @ w_D)


def _design(
    cells: Sequence[Battle], models: Sequence[str], baseline: str, style: Style | None, counts: Sequence[int]
) -> _Design:
    place = {model: i for i, model in enumerate(models)}
    plays_KM = np.zeros((len(cells), len(models)), dtype=bool)
    sign_KM = np.zeros((len(cells), len(models)))
    for k, cell in enumerate(cells):
        plays_KM[k, [place[cell.model_a], place[cell.model_b]]] = True
        sign_KM[k, place[cell.model_a]] += 1
        sign_KM[k, place[cell.model_b]] -= 1
    won_K = np.array([_WON[cell.winner] for cell in cells])
    if style is None:
        others = [i for i, model in enumerate(models) if model != baseline]
        return _Design(sign_KM[:, others], won_K, 0.0, len(others), np.eye(len(models))[:, others], plays_KM)
    z_KS = _style_features(cells, style, np.asarray(counts, dtype=float))
    to_score_MM = (np.eye(len(models)) - np.eye(len(models))[place[baseline]]) * math.log(10)
    return _Design(
        np.column_stack([sign_KM * math.log(10), z_KS]),
        won_K,
        1.0,
        len(models),
        np.column_stack([to_score_MM, np.zeros((len(models), z_KS.shape[1]))]),
        plays_KM,
    )


def _style_features(cells: Sequence[Battle], style: Style, counts_K: np.ndarray) -> np.ndarray:
    """Relative differences in style, mean 0 and standard deviation 1 over all battles."""
    sides = []
    for side in (1, 2):
        keys = [(str(cell[side]), cell.question) for cell in cells]
        if lacking := [key for key in keys if key not in style]:
            model, question = lacking[0]
            raise DataError(
                f"there are no style counts of {model} on question {question} ({len(set(lacking))} answers lack them): "
                "count them for every answer, or leave style control out"
            )
        sides.append(np.array([style[key] for key in keys], dtype=float))
    a_KS, b_KS = sides
    relative_KS = (a_KS - b_KS) / (a_KS + b_KS + 1)
    share_K1 = (counts_K / counts_K.sum())[:, None]
    centred_KS = relative_KS - (share_K1 * relative_KS).sum(0)
    deviation_S = np.sqrt((share_K1 * centred_KS**2).sum(0))
    # A feature that never differs explains nothing; 0/0 must not spread.
    z_KS: np.ndarray = centred_KS / np.where(deviation_S > 0, deviation_S, 1.0)
    return z_KS


def _check_joined(battles: Sequence[Battle], models: Sequence[str], baseline: str) -> None:
    if baseline not in models:
        shown = ", ".join(models[:8])
        raise DataError(f"the baseline {baseline!r} fights no battle (models: {shown}): name another one")
    neighbours: dict[str, set[str]] = {model: set() for model in models}
    for battle in battles:
        neighbours[battle.model_a].add(battle.model_b)
        neighbours[battle.model_b].add(battle.model_a)
    reached, todo = {baseline}, [baseline]
    while todo:
        todo += (new := neighbours[todo.pop()] - reached)
        reached |= new
    if apart := [model for model in models if model not in reached]:
        raise DataError(
            f"no chain of battles joins {', '.join(apart[:8])} to the baseline {baseline}: their scores would be "
            "arbitrary. Judge them against it, or leave them out"
        )


def _interval(drawn_R: np.ndarray) -> tuple[float, float]:
    low, high = np.nanpercentile(drawn_R, [2.5, 97.5])
    return float(low), float(high)
