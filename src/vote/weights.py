"""What the soft, the weighted and the stacked vote fit on labelled items, and the probabilities that follow.

Arrays: `logprobs` of shape (voters, items, options) in nats, `labels` of shape (items,), options' indices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from src import task
from src.worth.calibration import Floats, Ints, fit_temperature, log_softmax, softened

FOLDS = 5
LEAST_PROBABILITY = 1e-6
"""A single voter that was sure of something wrong must not decide alone what the weights are."""
MOST_ORDERS = 24
"""Orders of the options in which the stack sees each item: all of up to four options."""


@dataclass(frozen=True)
class Fitted:
    """A rule with what was fitted: a temperature and a weight for each voter. The soft vote's weights are all the same;
    those of the stack are coefficients of log-probabilities, which may be negative and sum to anything.
    """

    rule: str
    temperatures: Floats
    weights: Floats

    def probabilities(self, logprobs: Floats) -> Floats:
        """The voters' joint probabilities of the options, (items, options)."""
        calibrated = softened(logprobs, _by_voter(self.temperatures))
        if self.rule == "stack":
            return np.exp(log_softmax(np.tensordot(self.weights, _floored(calibrated), axes=1)))
        return np.tensordot(self.weights, np.exp(calibrated), axes=1)


def fit(rule: str, logprobs: Floats, labels: Ints, temperatures: Floats | None = None) -> Fitted:
    """`rule`, fitted on these items. temperatures: those of the same items, where they are known already."""
    if temperatures is None:
        temperatures = fit_temperatures(logprobs, labels)
    calibrated = softened(logprobs, _by_voter(temperatures))
    if rule == "weighted":
        weights = mixture_weights(np.exp(calibrated[:, np.arange(len(labels)), labels]))
    elif rule == "stack":
        weights = stack_weights(_floored(calibrated), labels)
    else:
        assert rule == "soft", rule
        weights = np.full(len(logprobs), 1 / len(logprobs))
    return Fitted(rule, temperatures, weights)


def out_of_fold(rule: str, logprobs: Floats, labels: Ints, folds: Ints) -> Floats:
    """Probabilities (items, options) of each item by the rule fitted on the items of all other folds."""
    found = np.empty(logprobs.shape[1:])
    for fold in np.unique(folds):
        held = folds == fold
        found[held] = fit(rule, logprobs[:, ~held], labels[~held]).probabilities(logprobs[:, held])
    return found


def dialogue_folds(keys: Sequence[str], count: int = FOLDS) -> Ints:
    """The fold (0, 1, …) of each item: items of one dialogue, which have the same key, are in the same one. There are
    as many folds as dialogues where these are fewer than `count`; at least two dialogues are needed. The order of the
    items changes nothing.
    """
    from sklearn.model_selection import GroupKFold

    dialogues = len(set(keys))
    assert dialogues > 1, "one dialogue cannot be divided"
    folds = np.empty(len(keys), dtype=np.intp)
    split = GroupKFold(min(count, dialogues)).split(np.zeros(len(keys)), groups=np.array(keys))
    for fold, (_, held) in enumerate(split):
        folds[held] = fold
    return folds


def fit_temperatures(logprobs: Floats, labels: Ints) -> Floats:
    return np.array([fit_temperature(own, labels) for own in logprobs])


def mixture_weights(likelihoods: Floats) -> Floats:
    """Weights on the simplex that minimise the mean of −log Σ w·p, where `likelihoods` (voters, items) are each voter's
    probabilities of the labels. The loss is convex in the weights.
    """
    from scipy.optimize import minimize

    floored = np.maximum(likelihoods, LEAST_PROBABILITY)
    voters = len(floored)

    def loss(weights: Floats) -> tuple[float, Floats]:
        mixed = np.maximum(weights @ floored, LEAST_PROBABILITY)
        return float(-np.log(mixed).mean()), -(floored / mixed).mean(axis=1)

    found: Any = minimize(
        loss,
        np.full(voters, 1 / voters),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * voters,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-10, "maxiter": 500},
    )
    weights = np.maximum(found.x, 0)
    return weights / weights.sum()


def stack_weights(logprobs: Floats, labels: Ints) -> Floats:
    """A coefficient for each voter: P(option) ∝ exp Σ w·logprob(option), fitted by a multinomial logistic regression
    with L2 penalty (C = 1) on all the voters' log-probabilities.

    Each item is seen in many orders of its options, all of them for up to four. The regression's optimum is then the
    same whatever position an option has: between an option's score and a voter's log-probability of an option there are
    only two coefficients, one for the same option and one for the others, and their difference is all that counts.
    """
    from sklearn.linear_model import LogisticRegression

    voters, items, options = logprobs.shape
    most = len(task.current().all_orders)
    orders = task.current().orders(most if most <= MOST_ORDERS else MOST_ORDERS // options * options)
    turned = [[int(option) for option in order] for order in orders]
    seen = np.concatenate([logprobs[:, :, order].transpose(1, 0, 2).reshape(items, -1) for order in turned])
    places = np.concatenate([np.argsort(order)[labels] for order in turned])
    # With two options the library keeps one of two opposite coefficients, and so counts them twice in the penalty.
    model = LogisticRegression(C=1.0 if options > 2 else 2.0, fit_intercept=False, tol=1e-6, max_iter=1000)
    model.fit(seen, places, sample_weight=np.full(len(seen), 1 / len(turned)))
    found = model.coef_ if options > 2 else np.concatenate([-model.coef_, model.coef_]) / 2
    coefficients = found.reshape(options, voters, options).transpose(1, 0, 2)
    same = np.trace(coefficients, axis1=1, axis2=2) / options
    other = (coefficients.sum(axis=(1, 2)) - same * options) / (options * (options - 1))
    weights: Floats = same - other
    return weights


def _floored(logprobs: Floats) -> Floats:
    return np.maximum(logprobs, np.log(LEAST_PROBABILITY))


def _by_voter(temperatures: Floats) -> Floats:
    """In the shape that fits (voters, items, options)."""
    return temperatures[:, None, None]
