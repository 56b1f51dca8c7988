import itertools

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from scipy.stats import binom

from src.task import Task
from src.vote.weights import dialogue_folds, fit, mixture_weights, out_of_fold, stack_weights
from src.worth.calibration import Floats, Ints, log_loss
from src.worth.metrics import chance_range
from tests.made_probabilities import drawn
from tests.made_task import working_on

RULES = ("soft", "weighted", "stack")


def reports(rng: np.random.Generator, labels: Ints, reliability: float, options: int = 3) -> Floats:
    """Log-probabilities (items, options) of a voter that knows how reliable it is: it names the label with the
    probability `reliability`, each other option equally often.
    """
    others = (labels + rng.integers(1, options, len(labels))) % options
    named = np.where(rng.random(len(labels)) < reliability, labels, others)
    found = np.full((len(labels), options), np.log((1 - reliability) / (options - 1)))
    found[np.arange(len(labels)), named] = np.log(reliability)
    return found


def of_options(count: int) -> Task:
    return Task("other", ("one",), tuple(f"o{number}" for number in range(count)), tuple("ABCDE"[:count]))


def noise(rng: np.random.Generator, items: int, options: int = 3) -> Floats:
    return log_softmax(rng.normal(0, 2, (items, options)), axis=1)


# Soft


def test_the_soft_vote_is_the_mean_of_the_calibrated_probabilities() -> None:
    logprobs = np.log([[[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]], [[0.1, 0.8, 0.1], [0.4, 0.4, 0.2]]])
    fitted = fit("soft", logprobs, np.array([1, 2]), temperatures=np.array([1.0, 0.5]))
    # By hand: a temperature of one half squares the second voter's probabilities.
    by_hand = [
        [(0.7 + 0.01 / 0.66) / 2, (0.2 + 0.64 / 0.66) / 2, (0.1 + 0.01 / 0.66) / 2],
        [(0.2 + 0.16 / 0.36) / 2, (0.3 + 0.16 / 0.36) / 2, (0.5 + 0.04 / 0.36) / 2],
    ]
    assert fitted.probabilities(logprobs) == pytest.approx(np.array(by_hand))
    assert fitted.weights.tolist() == [0.5, 0.5]


def test_voters_without_a_best_temperature_get_probabilities() -> None:
    labels = np.array([0, 1, 2, 0])
    logprobs = log_softmax(np.stack([np.eye(3)[labels], -np.eye(3)[labels]]), axis=2)
    assert np.isfinite(fit("weighted", logprobs, labels).probabilities(logprobs)).all()


# Weighted


def test_noise_gets_no_weight() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 2_000)
    logprobs = np.stack([noise(rng, 2_000), reports(rng, labels, 0.8)])
    for rule in ("weighted", "stack"):
        weights = fit(rule, logprobs, labels).weights
        assert abs(weights[0]) < 0.03, rule
        assert weights[1] == pytest.approx(1, abs=0.1), rule


def test_weights_of_a_known_mixture_are_found() -> None:
    """Labels that come from voter r with the probability w(r) make w the best weights there are."""
    rng, known = np.random.default_rng(4), np.array([0.5, 0.3, 0.2])
    probabilities = softmax(rng.normal(0, 2, (3, 40_000, 3)), axis=-1)
    author = rng.choice(3, p=known, size=40_000)
    labels = drawn(rng, probabilities[author, np.arange(40_000)])
    found = mixture_weights(probabilities[:, np.arange(40_000), labels])
    assert found == pytest.approx(known, abs=0.02)


@pytest.mark.parametrize("seed", range(10))
def test_weights_are_optimal(seed: int) -> None:
    """The conditions of Karush, Kuhn and Tucker, which are sufficient for a convex loss: the mean of p / Σ w·p is 1 for
    each voter with a weight and at most 1 for the others.
    """
    rng = np.random.default_rng(seed)
    likelihoods = rng.beta(0.5 + rng.random((8, 1)) * 2, 1, (8, 150))
    weights = mixture_weights(likelihoods)
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
    gains = (likelihoods / (weights @ likelihoods)).mean(axis=1)
    assert gains.max() < 1.001
    assert gains[weights > 0.01] == pytest.approx(1, abs=0.001)


# Stack


def test_independent_voters_add_up_as_bayes_says() -> None:
    """Log-posteriors of voters whose mistakes are independent add up, so every coefficient is 1, whatever the
    reliability.
    """
    rng, reliabilities = np.random.default_rng(5), (0.9, 0.7, 0.5, 0.6)
    labels = rng.integers(0, 3, 20_000)
    logprobs = np.stack([reports(rng, labels, reliability) for reliability in reliabilities])
    fitted = fit("stack", logprobs, labels)
    assert fitted.weights == pytest.approx(np.ones(4), abs=0.1)
    bayes = softmax(logprobs.sum(axis=0), axis=1)
    found = fitted.probabilities(logprobs)
    assert np.abs(found - bayes).max() < 0.05
    assert (found.argmax(axis=1) == bayes.argmax(axis=1)).mean() > 0.99
    # Neither a mean of probabilities nor the best voter alone comes up to that.
    assert log_loss(found, labels) < log_loss(fit("weighted", logprobs, labels).probabilities(logprobs), labels)


def test_a_voter_given_twice_has_its_weight_shared() -> None:
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 3, 5_000)
    one, other = reports(rng, labels, 0.8), reports(rng, labels, 0.7)
    weights = fit("stack", np.stack([one, one, other]), labels).weights
    assert weights[0] == pytest.approx(weights[1], abs=1e-3)
    assert weights[0] + weights[1] == pytest.approx(1, abs=0.1) == weights[2]


@pytest.mark.parametrize("options", [2, 3, 4])
def test_the_stack_is_a_conditional_logit_with_a_penalty(options: int) -> None:
    """Reference: the same model written as one coefficient a voter, and minimised directly. Of the full regression's
    coefficients a voter's are w·(δ − 1/options), whose squares sum to (options − 1)·w².
    """
    rng = np.random.default_rng(7)
    labels = rng.integers(0, options, 120)
    logprobs = np.stack([noise(rng, 120, options) + 0.7 * np.eye(options)[labels] * one for one in (0.2, 1, 2)])

    def loss(weights: Floats) -> float:
        likely = log_softmax(np.tensordot(weights, logprobs, axes=1), axis=1)[np.arange(120), labels]
        return float(-likely.sum() + (options - 1) / 2 * (weights**2).sum())

    with working_on(of_options(options)):
        found = stack_weights(logprobs, labels)
    assert found == pytest.approx(minimize(loss, np.zeros(3)).x, abs=1e-3)


@pytest.mark.parametrize("options", [2, 3, 5])
def test_the_stack_does_not_know_positions(options: int) -> None:
    rng = np.random.default_rng(8)
    labels = np.zeros(60, dtype=np.intp)  # always the first: a tempting position
    logprobs = np.stack([noise(rng, 60, options), noise(rng, 60, options) + np.eye(options)[labels]])
    with working_on(of_options(options)):
        fitted = fit("stack", logprobs, labels)
        plain = fitted.probabilities(logprobs)
        order = list(range(options))[::-1]
        turned = fit("stack", logprobs[:, :, order], np.argsort(order)[labels])
    assert fitted.probabilities(logprobs[:, :, order]) == pytest.approx(plain[:, order])
    # Of five options 20 orders of 120 are seen: each option equally often everywhere, but not every pair.
    assert turned.weights == pytest.approx(fitted.weights, abs=0.02 if options == 5 else 1e-4)


# Folds, and what must not leak


def test_no_dialogue_is_in_two_folds() -> None:
    rng = np.random.default_rng(9)
    keys = [f"dialogue {number}" for number in rng.integers(0, 40, 151)]
    folds = dialogue_folds(keys)
    places = {key: {int(fold) for fold, own in zip(folds, keys, strict=True) if own == key} for key in keys}
    assert {len(one) for one in places.values()} == {1}
    assert len(set(folds.tolist())) == 5 and np.bincount(folds).min() > 25
    shuffled = rng.permutation(151)
    again = dialogue_folds([keys[place] for place in shuffled])
    assert again.tolist() == folds[shuffled].tolist()
    assert len(set(dialogue_folds(list("abbc")).tolist())) == 3, "no more folds than dialogues"
    with pytest.raises(AssertionError):
        dialogue_folds(["a", "a"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    ["soft", pytest.param("weighted", marks=pytest.mark.thorough), pytest.param("stack", marks=pytest.mark.thorough)],
)
def test_shuffled_labels_give_chance(rule: str) -> None:
    """Three voters that know the labels and a hundred of noise: with the labels shuffled no rule finds anything out of
    fold. One that sees an item's own label is far above chance, as the last line shows.
    """
    rng, items, times = np.random.default_rng(10), 150, 2
    labels = rng.integers(0, 3, items)
    knowing = [reports(rng, labels, 0.7) + rng.normal(0, 0.5, (items, 3)) for _ in range(3)]
    logprobs = np.stack([*knowing, *(noise(rng, items) for _ in range(100))])
    folds = dialogue_folds([f"d{number // 3}" for number in range(items)])
    known = out_of_fold(rule, logprobs, labels, folds).argmax(axis=1) == labels
    assert known.mean() > 0.7, "with the labels as they are it is no chance"
    low, high = chance_range(items * times, confidence=0.999)
    out, seen = [], []
    for shuffled in (rng.permutation(labels) for _ in range(times)):
        out.append(out_of_fold(rule, logprobs, shuffled, folds).argmax(axis=1) == shuffled)
        seen.append(fit(rule, logprobs, shuffled).probabilities(logprobs).argmax(axis=1) == shuffled)
    assert low <= np.mean(out) <= high
    assert np.mean(seen) > high, "this test would show a leak"


@pytest.mark.slow
def test_labels_that_follow_the_dialogue_do_not_leak() -> None:
    """Every dialogue has one label, and voters that recognise the dialogue but know nothing of others."""
    rng, dialogues, each = np.random.default_rng(11), 50, 4
    label_of = rng.integers(0, 3, dialogues)
    labels, keys = np.repeat(label_of, each), [f"d{number // each}" for number in range(dialogues * each)]
    logprobs = np.repeat(np.stack([noise(rng, dialogues) for _ in range(100)]), each, axis=1)
    low, high = np.array(binom.interval(0.999, dialogues, 1 / 3)) / dialogues  # dialogues are what is drawn
    by_dialogue = out_of_fold("stack", logprobs, labels, dialogue_folds(keys)).argmax(axis=1) == labels
    assert low <= by_dialogue.mean() <= high
    by_item = out_of_fold("stack", logprobs, labels, np.arange(len(labels)) % 5).argmax(axis=1) == labels
    assert by_item.mean() > high, "folds of single items leak here"


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_voters_and_items_changes_nothing(rule: str) -> None:
    rng = np.random.default_rng(12)
    labels = rng.integers(0, 3, 60)
    logprobs = np.stack([reports(rng, labels, one) + rng.normal(0, 0.3, (60, 3)) for one in (0.5, 0.6, 0.8)])
    found = fit(rule, logprobs, labels)
    places = rng.permutation(60)
    for voters in itertools.permutations(range(3)):
        other = fit(rule, logprobs[list(voters)][:, places], labels[places])
        assert other.weights == pytest.approx(found.weights[list(voters)], abs=1e-4)
        assert other.temperatures == pytest.approx(found.temperatures[list(voters)], rel=1e-4)
