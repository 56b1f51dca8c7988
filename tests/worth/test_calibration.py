"""Measures of probabilities against scikit-learn, by hand, and on labels drawn from known probabilities."""

from collections import Counter

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn import metrics

from src.worth.calibration import (
    CALIBRATED,
    LEAST_IN_BIN,
    LOG_LOSS_FLOOR,
    MOST_BINS,
    OVER,
    TEMPERATURES,
    UNDER,
    UNEVEN,
    Floats,
    Ints,
    Measured,
    bins_of,
    brier_scores,
    fit_temperature,
    fold_temperatures,
    log_loss,
    measure,
    softened,
    temperature_notes,
)
from src.worth.metrics import wilson
from tests.made_probabilities import drawn


def of_answers(confidence: Floats) -> Floats:
    """Probabilities of three options, the first of which is the answer."""
    return np.stack([confidence, (1 - confidence) / 2, (1 - confidence) / 2], axis=1)


def measured(probabilities: Floats, labels: Ints) -> Measured:
    return measure(probabilities, probabilities.argmax(axis=1), labels)


# Log-loss and Brier score


@pytest.mark.parametrize("options", [2, 3, 5])
def test_scores_are_those_of_scikit_learn(options: int) -> None:
    rng = np.random.default_rng(options)
    probabilities, labels = softmax(rng.normal(0, 3, (200, options)), axis=1), rng.integers(0, options, 200)
    probabilities[:3] = np.eye(options)[(labels[:3] + 1) % options]  # sure and wrong
    every = list(range(options))
    assert log_loss(probabilities, labels) == pytest.approx(metrics.log_loss(labels, probabilities, labels=every))
    by_option = [metrics.brier_score_loss(labels == one, probabilities[:, one], pos_label=True) for one in every]
    assert brier_scores(probabilities, labels).mean() == pytest.approx(sum(by_option))
    found = measured(probabilities, labels)
    assert found.log_loss == log_loss(probabilities, labels)
    assert found.brier == brier_scores(probabilities, labels).mean()
    assert found.floored == 3
    assert log_loss(probabilities[:3], labels[:3]) == -np.log(LOG_LOSS_FLOOR)


def test_the_brier_score_is_between_nothing_and_two() -> None:
    labels = np.array([0, 1, 2])
    assert brier_scores(np.eye(3), labels).tolist() == [0, 0, 0]
    assert brier_scores(np.eye(3)[[1, 2, 0]], labels).tolist() == [2, 2, 2]
    assert brier_scores(np.full((3, 3), 1 / 3), labels) == pytest.approx([2 / 3] * 3)


# Calibration error


def test_the_calibration_error_of_two_bins_by_hand() -> None:
    """20 answers of probability .6 of which 15 are right, 20 of .9 of which 14 are."""
    confidence = np.repeat([0.6, 0.9], 20)
    labels = np.array([0] * 15 + [1] * 5 + [0] * 14 + [2] * 6)
    found = measure(of_answers(confidence), np.zeros(40, dtype=int), labels)
    assert found.ece == pytest.approx((0.15 + 0.2) / 2)
    assert (found.confidence, found.accuracy) == (pytest.approx(0.75), 29 / 40)
    assert [(one.confidence, one.share.correct, one.share.total) for one in found.bins] == [
        (pytest.approx(0.6), 15, 20),
        (pytest.approx(0.9), 14, 20),
    ]
    assert found.bins[1].share.interval == wilson(14, 20)
    assert found.as_json()["bins"][1]["interval"] == wilson(14, 20)
    turned = np.random.default_rng(0).permutation(40)
    again = measure(of_answers(confidence)[turned], np.zeros(40, dtype=int), labels[turned])
    assert again.ece == pytest.approx(found.ece)
    assert again.ece_if_calibrated == found.ece_if_calibrated


def test_bins_are_about_equally_full_and_part_no_equal_confidences() -> None:
    rng = np.random.default_rng(1)
    for items, bins in ((5, 1), (39, 1), (40, 2), (150, 7), (301, 15), (5_000, 15)):
        confidence = rng.beta(8, 1, items)
        found = bins_of(confidence)
        counts = np.bincount(found)
        assert len(counts) == bins and counts.max() - counts.min() <= 1, items
        assert (np.diff(found[np.argsort(confidence)]) >= 0).all(), "in rising order"
    shares = rng.choice([3, 4, 5, 6, 7, 8], 150, p=[0.05, 0.05, 0.1, 0.1, 0.2, 0.5]) / 8
    found = bins_of(shares)
    assert all(len(set(found[shares == share].tolist())) == 1 for share in shares)
    assert bins_of(np.ones(100)).tolist() == [0] * 100
    assert (LEAST_IN_BIN, MOST_BINS) == (20, 15), "as many as above"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("items", "sharpness", "draws"),
    [
        (60, 2, 300),
        pytest.param(150, 4, 300, marks=pytest.mark.thorough),
        pytest.param(909, 8, 150, marks=pytest.mark.thorough),
    ],
)
def test_calibrated_probabilities_are_within_the_range_and_others_are_not(
    items: int, sharpness: float, draws: int
) -> None:
    """95 % of calibrated ones are within, ± 3 standard errors of so many draws; at most 5 % are called uncalibrated.
    The same labels, with the logits doubled or halved, are called by the right name, the more often the more items.
    """
    error = 3 * (0.95 * 0.05 / draws) ** 0.5
    rng, within = np.random.default_rng(3), 0
    verdicts: dict[str, Counter[str]] = {"as drawn": Counter(), "doubled": Counter(), "halved": Counter()}
    for _ in range(draws):
        logits = rng.normal(0, sharpness, (items, 3))
        labels = drawn(rng, softmax(logits, axis=1))
        for name, factor in (("as drawn", 1.0), ("doubled", 2.0), ("halved", 0.5)):
            found = measured(softmax(logits * factor, axis=1), labels)
            verdicts[name][found.verdict] += 1
            if name == "as drawn":
                low, high = found.ece_if_calibrated
                within += low <= found.ece <= high
    assert 0.95 - error <= within / draws <= 0.95 + error
    assert verdicts["as drawn"][CALIBRATED] / draws >= 0.95 - error
    power = {60: 0.3, 150: 0.7, 909: 0.99}[items]
    assert verdicts["doubled"][OVER] / draws > power and verdicts["doubled"][UNDER] == 0
    assert verdicts["halved"][UNDER] / draws > power and verdicts["halved"][OVER] == 0


def test_what_a_calibrated_model_shows_is_larger_on_fewer_items() -> None:
    rng, highest = np.random.default_rng(4), []
    for items in (150, 600, 2_400):
        confidence = rng.beta(8, 2, items)
        labels = (rng.random(items) > confidence).astype(int)
        highest.append(measure(of_answers(confidence), np.zeros(items, dtype=int), labels).ece_if_calibrated[1])
    assert highest[0] > 1.4 * highest[1] > 1.4 * 1.4 * highest[2]


def test_right_on_average_and_wrong_in_every_bin_is_uneven() -> None:
    confidence = np.repeat([0.5, 0.9], 200)
    labels = np.repeat([0, 1, 0, 1], [140, 60, 140, 60])
    found = measure(of_answers(confidence), np.zeros(400, dtype=int), labels)
    assert found.confidence == pytest.approx(found.accuracy) and found.verdict == UNEVEN


def test_sure_of_everything() -> None:
    sure = of_answers(np.ones(30))
    all_right = measure(sure, np.zeros(30, dtype=int), np.zeros(30, dtype=int))
    assert (all_right.ece, all_right.ece_if_calibrated, all_right.verdict) == (0.0, (0.0, 0.0), CALIBRATED)
    one_wrong = measure(sure, np.zeros(30, dtype=int), np.arange(30) // 29)
    assert (one_wrong.floored, one_wrong.verdict) == (1, OVER), "nobody who is sure may be wrong once"


# Temperature


@pytest.mark.parametrize("known", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found(known: float) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (20_000, 3))
    labels = drawn(rng, softmax(logits / known, axis=1))
    assert fit_temperature(log_softmax(logits, axis=1), labels) == pytest.approx(known, rel=0.03)


def test_the_temperature_is_where_the_loss_is_least() -> None:
    rng = np.random.default_rng(2)
    logprobs, labels = log_softmax(rng.normal(0, 2, (200, 3)), axis=1), rng.integers(0, 3, 200)
    logprobs[np.arange(200), labels] += 0.6
    found = fit_temperature(logprobs, labels)

    def loss(temperature: float) -> float:
        return log_loss(softmax(logprobs / temperature, axis=1), labels)

    assert all(loss(found) < loss(found * factor) for factor in (0.5, 0.98, 1.02, 2.0))


def test_without_a_best_temperature_it_stays_within_bounds() -> None:
    labels = np.array([0, 1, 2, 0])
    right = log_softmax(np.eye(3)[labels], axis=1)
    wrong = log_softmax(-np.eye(3)[labels], axis=1)
    low, high = TEMPERATURES
    assert fit_temperature(right, labels) == pytest.approx(low, rel=0.01)
    assert fit_temperature(log_softmax(30 * np.eye(3)[labels], axis=1), labels) == low, "the loss is nothing at 1, too"
    assert fit_temperature(wrong, labels) == pytest.approx(high, rel=0.01)


def test_the_temperature_of_an_item_knows_nothing_of_its_fold() -> None:
    """Labels of one fold are turned round: its own temperature stays, those of all others change."""
    rng = np.random.default_rng(6)
    logits, folds = rng.normal(0, 2, (200, 3)), np.arange(200) % 5
    labels = drawn(rng, softmax(logits, axis=1))
    before = fold_temperatures(log_softmax(logits, axis=1), labels, folds)
    turned = np.where(folds == 2, (labels + 1) % 3, labels)
    after = fold_temperatures(log_softmax(logits, axis=1), turned, folds)
    assert after[2] == before[2]
    assert all(after[fold] > before[fold] * 1.05 for fold in (0, 1, 3, 4))


def test_the_true_temperature_mends_what_was_sharpened() -> None:
    rng = np.random.default_rng(7)
    logits = rng.normal(0, 3, (900, 3))
    labels = drawn(rng, softmax(logits, axis=1))
    sharp = log_softmax(logits * 3, axis=1)
    assert softened(sharp, 3.0) == pytest.approx(log_softmax(logits, axis=1))
    assert softened(sharp, np.full((900, 1), 3.0)) == pytest.approx(softened(sharp, 3.0))
    assert measured(np.exp(sharp), labels).verdict == OVER
    assert measured(np.exp(softened(sharp, fit_temperature(sharp, labels))), labels).verdict == CALIBRATED


def test_temperatures_at_their_bounds_are_told() -> None:
    low, high = TEMPERATURES
    assert temperature_notes({"alpha": 1.0, "beta": low * 1.05, "gamma": high * 0.9}, "dev") == []
    notes = temperature_notes({"alpha": low, "beta": high}, "train")
    assert "alpha makes no mistake on train" in notes[0] and "beta tells nothing about train" in notes[1]
