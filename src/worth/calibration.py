"""Whether probabilities are what they say: log-loss, Brier score, calibration error, and temperature scaling.

Arrays: `logprobs` and `probabilities` of shape (items, options), the former in nats, `labels` and `answers` of shape
(items,), options' indices.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.worth.metrics import Share, wilson

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

TEMPERATURES = (0.05, 1000.0)
"""The least and the largest. A voter without mistakes has no best temperature (the lower the better), and one that
knows nothing has none either (the higher the better).
"""
LOG_LOSS_FLOOR = float(np.finfo(np.float64).eps)
"""The log-loss counts a lower probability of the label as this one, 36 nats, as scikit-learn does."""
ROUNDING = 1e-12
"""Sums of the same numbers in another sequence differ by less."""

MOST_BINS, LEAST_IN_BIN = 15, 20
"""15 bins are customary (Guo et al. 2017); bins of fewer than 20 items would show noise."""
DRAWS, SEED = 2_000, 0

UNDER, OVER, UNEVEN, CALIBRATED = "underconfident", "overconfident", "uneven", "not told apart"
"""What `Measured.verdict` says; not told apart: from perfectly calibrated probabilities."""


@dataclass(frozen=True)
class Bin:
    """Items whose answers have about the same probability: its mean, and the share of right answers."""

    confidence: float
    share: Share


@dataclass(frozen=True)
class Measured:
    """How far probabilities are what they say, on labelled items.

    log_loss    mean of −log p(label), nats; None where there is none
    floored     items whose label has a probability below `LOG_LOSS_FLOOR`
    brier       mean of `brier_scores`, 0..2 (Brier 1950)
    confidence  mean probability of the answer
    ece         expected calibration error of the answer's probability: Σ over `bins` of their share of the items times
                |confidence − accuracy|
    ece_if_calibrated  95 % of the errors that these probabilities would show if they were perfectly calibrated: on few
                items the error is above 0 even then, since each bin's accuracy scatters
    gap_if_calibrated  the same for confidence minus accuracy, of 97.5 %
    """

    items: int
    log_loss: float | None
    floored: int
    brier: float
    confidence: float
    accuracy: float
    ece: float
    ece_if_calibrated: tuple[float, float]
    gap_if_calibrated: tuple[float, float]
    bins: tuple[Bin, ...]

    @property
    def verdict(self) -> str:
        """Over- or underconfident where confidence and accuracy differ by more than `gap_if_calibrated`; uneven where
        only the calibration error is larger than it would be: too sure of some items, too little of others. Of
        calibrated probabilities of independent items 5 in 100 at most are called one of these.
        """
        low, high = self.gap_if_calibrated
        gap = self.confidence - self.accuracy
        if not low - ROUNDING <= gap <= high + ROUNDING:
            return OVER if gap > 0 else UNDER
        return UNEVEN if self.ece > self.ece_if_calibrated[1] + ROUNDING else CALIBRATED

    def as_json(self) -> dict[str, Any]:
        bins = [{"confidence": one.confidence} | one.share._asdict() for one in self.bins]
        return asdict(self) | {"verdict": self.verdict, "bins": bins}


def measure(probabilities: Floats, answers: Ints, labels: Ints) -> Measured:
    """At least one item; rows of `probabilities` sum to 1. The order of the items changes nothing."""
    places = np.arange(len(labels))
    confidence, right = probabilities[places, answers], answers == labels
    bins = bins_of(confidence)
    binned = [(confidence[bins == one], right[bins == one]) for one in np.unique(bins)]
    missed = sum(abs(float(own.sum() - hits.sum())) for own, hits in binned)
    errors, gaps = _if_calibrated([own for own, _ in binned])
    return Measured(
        items=len(labels),
        log_loss=log_loss(probabilities, labels),
        floored=int((probabilities[places, labels] < LOG_LOSS_FLOOR).sum()),
        brier=float(brier_scores(probabilities, labels).mean()),
        confidence=float(confidence.mean()),
        accuracy=float(right.mean()),
        ece=missed / len(labels),
        ece_if_calibrated=_middle(errors, 0.95),
        gap_if_calibrated=_middle(gaps, 0.975),
        bins=tuple(Bin(float(own.mean()), _share(hits)) for own, hits in binned),
    )


def bins_of(confidence: Floats) -> Ints:
    """The bin (0, 1, …, in rising order of confidence) of each item. Bins have about as many items each, since most
    answers of a good model lie close to 1. Equal confidences are in the same bin, so shares of a few ballots make as
    many bins as there are such shares.
    """
    wanted = min(MOST_BINS, max(1, len(confidence) // LEAST_IN_BIN))
    _, place, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    middle = (np.cumsum(counts) - counts / 2) / len(confidence)
    _, bins = np.unique(np.floor(middle * wanted)[place], return_inverse=True)
    return bins


def _if_calibrated(binned: list[Floats]) -> tuple[Floats, Floats]:
    """Calibration errors and gaps (confidence minus accuracy) of `DRAWS` draws in which each answer is right with its
    probability, independently of the others.
    """
    rng = np.random.default_rng(SEED)
    items = sum(map(len, binned))
    # In sorted order, so that the order of the items changes nothing.
    apart = np.array([own.sum() - (rng.random((DRAWS, len(own))) < np.sort(own)).sum(axis=1) for own in binned]) / items
    return np.abs(apart).sum(axis=0), apart.sum(axis=0)


def _middle(draws: Floats, share: float) -> tuple[float, float]:
    low, high = np.quantile(draws, ((1 - share) / 2, (1 + share) / 2))
    return float(low), float(high)


def _share(hits: NDArray[np.bool_]) -> Share:
    correct, total = int(hits.sum()), len(hits)
    return Share(correct, total, correct / total, wilson(correct, total))


def brier_scores(probabilities: Floats, labels: Ints) -> Floats:
    """Σ (p(option) − 1 if it is the label)² over the options of each item, 0..2."""
    found: Floats = ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1)
    return found


def log_loss(probabilities: Floats, labels: Ints) -> float:
    return float(losses(probabilities, labels).mean())


def losses(probabilities: Floats, labels: Ints) -> Floats:
    """−log p(label) of each item, nats."""
    found: Floats = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], LOG_LOSS_FLOOR))
    return found


# Temperature


def fit_temperature(logprobs: Floats, labels: Ints) -> float:
    """The temperature within `TEMPERATURES` that makes the labels likeliest (Guo et al. 2017, temperature scaling). The
    loss is convex in 1/T, so it has one minimum in log T as well.
    """
    from scipy.optimize import minimize_scalar

    own = logprobs[np.arange(len(labels)), labels]
    if (own == logprobs.max(axis=1)).all():  # no mistake; the loss may be 0 long before the bound
        return TEMPERATURES[0]

    def loss(log_temperature: float) -> float:
        scaled = logprobs / np.exp(log_temperature)
        top = scaled.max(axis=1)
        total = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        return float((total - own / np.exp(log_temperature)).mean())

    bounds = tuple(np.log(TEMPERATURES))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5}).x))


def fold_temperatures(logprobs: Floats, labels: Ints, folds: Ints) -> dict[int, float]:
    """Fold → the temperature fitted on the items of all other folds."""
    return {int(one): fit_temperature(logprobs[folds != one], labels[folds != one]) for one in np.unique(folds)}


def softened(logprobs: Floats, temperature: float | Floats) -> Floats:
    """Log-probabilities divided by the temperature (one for all, or of a shape that fits), normalised again."""
    return log_softmax(logprobs / temperature)


def temperature_notes(temperatures: Mapping[str, float], split: str) -> list[str]:
    """A note for each name whose temperature, fitted on `split`, is at a bound."""
    low, high = TEMPERATURES
    notes = []
    for name, temperature in temperatures.items():
        if temperature < low * 1.01:
            notes.append(f"{name} makes no mistake on {split} that could tell its temperature; taken is {low}")
        elif temperature > high * 0.99:
            notes.append(f"{name} tells nothing about {split}'s labels; its probabilities count as nearly equal")
    return notes


def log_softmax(values: Floats) -> Floats:
    """Over the last axis."""
    shifted = values - values.max(axis=-1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found
