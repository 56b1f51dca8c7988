"""Labels of invented items whose true probabilities are known."""

import numpy as np

from src.worth.calibration import Floats, Ints


def drawn(rng: np.random.Generator, probabilities: Floats) -> Ints:
    """A label for each row, drawn from its probabilities."""
    return (probabilities.cumsum(axis=1) < rng.random(len(probabilities))[:, None]).sum(axis=1)
