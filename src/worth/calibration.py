"""Whether probabilities are what they say: the temperature that softens or sharpens them, and their log-loss.

Arrays: `logprobs` of shape (items, options) in nats, `labels` of shape (items,), options' indices.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

TEMPERATURES = (0.05, 1000.0)
"""The least and the largest. A voter without mistakes has no best temperature (the lower the better), and one that
knows nothing has none either (the higher the better).
"""


def fit_temperature(logprobs: Floats, labels: Ints) -> float:
    """The temperature within `TEMPERATURES` that makes the labels likeliest (Guo et al. 2017, temperature scaling). The
    loss is convex in 1/T, so it has one minimum in log T as well.
    """
    from scipy.optimize import minimize_scalar

    own = logprobs[np.arange(len(labels)), labels]

    def loss(log_temperature: float) -> float:
        scaled = logprobs / np.exp(log_temperature)
        top = scaled.max(axis=1)
        total = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        return float((total - own / np.exp(log_temperature)).mean())

    bounds = tuple(np.log(TEMPERATURES))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5}).x))


def log_loss(probabilities: Floats, labels: Ints) -> float:
    """Mean of −log p(label), nats; (items, options) and (items,)."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, np.finfo(float).tiny)).mean())


def log_softmax(values: Floats) -> Floats:
    """Over the last axis."""
    shifted = values - values.max(axis=-1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found
