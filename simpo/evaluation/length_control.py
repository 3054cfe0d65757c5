"""AlpacaEval 2's length-controlled win rate: what the win rate would be if both answers were equally long.

Source: tatsu-lab/alpaca_eval, `metrics/glm_winrate.py`, "length_controlled_v1"; Dubois et al. 2024, arXiv 2404.04475.
A logistic regression on soft labels q in 0..1 (preference - 1), without intercept, with an L1 penalty:

    logit P(model wins) = w_length * tanh(delta / sd(delta)) + w_difficulty * difficulty + w_model
    delta = characters of the baseline's answer - characters of the model's

is fitted to the model's judgements and, at weight 0.2 in all, to those of two baselines that were asked to be verbose
or concise ("gamed"; their w_model is 0 by construction). The win rate is the mean prediction at delta = 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from simpo.errors import ConfigError, DataError
from simpo.evaluation.alpaca import checked_preference

STRENGTHS = tuple(float(each) for each in np.logspace(-4, 4, 10))
"""The official grid of C, the inverse strength of the penalty (scikit-learn's Cs=10)."""

REGULARISER_WEIGHT = 0.2
"""Weight of one judgement of the model that the gamed baselines have together (`regularize_to_baseline_lambda`)."""

_FOLDS = 5
_DEALS = 5
"""How often folds are dealt. The log-loss is so flat in C that one deal chooses among 2.8, 21.5 and 167 nearly at
random (up to 0.15 points of win rate); the official deal depends on the vector unit of the machine. The mean over
deals is what any one of them estimates."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Regularisers:
    """Judgements of gamed baselines. All arrays have one entry a row."""

    std_delta_len_N: np.ndarray
    """delta / sd(delta) of the row's own baseline."""
    difficulty_N: np.ndarray
    preference_N: np.ndarray
    """In 0..1."""
    baselines: int = 2
    """How many gamed baselines the rows come from: they share REGULARISER_WEIGHT."""


@dataclass(frozen=True, kw_only=True)
class LengthControlled:
    """A length-controlled win rate, and the fit it was read from."""

    win_rate: float
    """Mean prediction without a length difference, percent."""
    standard_error: float | None
    """Of that mean over prompts (the official figure: it holds the weights fixed), percent points."""
    w_length: float
    w_difficulty: float
    w_model: float
    strengths: tuple[float, ...]
    """C as given, or as each deal of the folds chose it; weights and win rate are means over these."""


def length_controlled(
    preferences: Sequence[float | None],
    delta_len: Sequence[float],
    difficulty: Sequence[float] | None = None,
    *,
    regularisers: Regularisers | None = None,
    strength: float | None = None,
) -> LengthControlled:
    """The length-controlled win rate of one model.

    preferences: in 1..2 by prompt; None where the judgement failed (the prompt is predicted, but not fitted).
    delta_len: characters of the baseline's answer - characters of the model's.
    difficulty: the official feature by prompt. None drops the term: it exists for AlpacaEval's own prompts only.
    regularisers: None leaves these rows out, as official code with lambda = 0.
    strength: C; None chooses it by cross-validated log-loss from STRENGTHS.
    Raises DataError: lengths disagree, a preference is out of range, or fewer than two judgements. ConfigError: C <= 0.
    """
    if strength is not None and not strength > 0:
        raise ConfigError(f"C must be above 0, not {strength:g}", "strength")
    n = len(preferences)
    if len(delta_len) != n or (difficulty is not None and len(difficulty) != n):
        raise DataError(f"{n} preferences but {len(delta_len)} length differences: give one of each a prompt")
    delta_N = np.asarray(delta_len, dtype=float)
    difficulty_N = np.zeros(n) if difficulty is None else np.asarray(difficulty, dtype=float)
    checked = [checked_preference(each) for each in preferences]
    label_N = np.array([np.nan if each is None else each - 1 for each in checked])
    judged_N = ~np.isnan(label_N)
    if judged_N.sum() < 2:
        raise DataError(f"{judged_N.sum()} of {n} prompts are judged: length control needs at least two")
    spread = delta_N.std(ddof=1)
    # Equal lengths throughout: there is nothing to control, and 0/0 must not make it a NaN.
    length_N = np.tanh(delta_N / spread) if spread > 0 else np.zeros(n)
    x_N3 = np.column_stack([length_N, difficulty_N, np.ones(n)])
    fit = _Fit(x_N3[judged_N], label_N[judged_N], np.ones(judged_N.sum()))
    if regularisers is not None:
        fit = _with_regularisers(fit, regularisers)
    strengths = tuple(fit.chosen(deal) for deal in range(_DEALS)) if strength is None else (strength,)
    weights = {each: fit.weights(each) for each in set(strengths)}
    equal_N3 = np.column_stack([np.zeros(n), difficulty_N, np.ones(n)])
    predicted_N = np.mean([expit(equal_N3 @ weights[each]) for each in strengths], axis=0)
    mean_3 = np.mean([weights[each] for each in strengths], axis=0)
    return LengthControlled(
        win_rate=100 * float(predicted_N.mean()),
        standard_error=100 * float(predicted_N.std(ddof=1)) / n**0.5,
        w_length=float(mean_3[0]),
        w_difficulty=float(mean_3[1]),
        w_model=float(mean_3[2]),
        strengths=strengths,
    )


@dataclass(frozen=True, eq=False)
class _Fit:
    """Rows of the regression: features, soft labels, weights."""

    x_N3: np.ndarray
    label_N: np.ndarray
    weight_N: np.ndarray

    def weights(self, strength: float) -> np.ndarray:
        """w_length, w_difficulty, w_model. liblinear, because its tolerance is part of the published figures."""
        from sklearn.linear_model import LogisticRegression  # noqa: PLC0415  # lazy: a second to import

        # A soft label is a positive row of weight q and a negative one of weight 1 - q. liblinear drops rows of
        # weight 0 and fails where that leaves one class, so none is quite 0.
        weight_M = np.concatenate([self.label_N * self.weight_N, (1 - self.label_N) * self.weight_N])
        model: Any = LogisticRegression(
            C=strength, l1_ratio=1, solver="liblinear", fit_intercept=False, random_state=123
        )
        y_M = np.repeat([1, 0], len(self.label_N))
        model.fit(np.concatenate([self.x_N3, self.x_N3]), y_M, sample_weight=np.maximum(weight_M, 1e-12))
        coefficients: np.ndarray = model.coef_[0]
        return coefficients

    def chosen(self, deal: int) -> float:
        """The C of the lowest weighted log-loss on held-out fifths; deal 0 is scikit-learn's GroupKFold."""
        n = len(self.label_N)
        fold_N = (n - 1 - np.arange(n)) % _FOLDS
        if deal:
            fold_N = np.random.default_rng(deal - 1).permutation(n) % _FOLDS
        loss = np.zeros(len(STRENGTHS))
        for fold in set(fold_N.tolist()):
            train, test = self.rows(fold_N != fold), self.rows(fold_N == fold)
            loss += [test.loss(train.weights(strength)) for strength in STRENGTHS]
        return STRENGTHS[int(loss.argmin())]

    def rows(self, chosen_N: np.ndarray) -> "_Fit":
        return _Fit(self.x_N3[chosen_N], self.label_N[chosen_N], self.weight_N[chosen_N])

    def loss(self, weights_3: np.ndarray) -> float:
        """Weighted log-loss a row: -w [q log p + (1-q) log(1-p)], with log p = -log(1 + e^-z)."""
        z_N = self.x_N3 @ weights_3
        loss_N = self.label_N * np.logaddexp(0, -z_N) + (1 - self.label_N) * np.logaddexp(0, z_N)
        return float((self.weight_N * loss_N).mean())


def _with_regularisers(fit: _Fit, regularisers: Regularisers) -> _Fit:
    rows = len(regularisers.preference_N)
    x_R3 = np.column_stack([np.tanh(regularisers.std_delta_len_N), regularisers.difficulty_N, np.zeros(rows)])
    return _Fit(
        np.concatenate([x_R3, fit.x_N3]),
        np.concatenate([regularisers.preference_N, fit.label_N]),
        np.concatenate([np.full(rows, REGULARISER_WEIGHT / regularisers.baselines), fit.weight_N]),
    )
