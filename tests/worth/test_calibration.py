import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from src.worth.calibration import TEMPERATURES, fit_temperature, log_loss
from tests.made_probabilities import drawn

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
    assert fit_temperature(wrong, labels) == pytest.approx(high, rel=0.01)
