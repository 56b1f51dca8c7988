"""ORPO: odds-ratio preference optimisation (Hong et al. 2024, arXiv 2403.07691), on rows of src/train/pair_rows.py.

For a prompt x with a right answer w and a wrong one l, the paper's loss is

    log P(y)    mean of the log-probabilities of y's tokens after x
    odds(y)     P(y) / (1 - P(y))
    loss        -log P(w)  +  beta · -log σ( log odds(w) / odds(l) )

It needs no reference model and only one pass. The first term is taken over the answer, as in the paper, or over prompt
and answer, as in TRL.

The loss of an optimizer step is the mean of the first term over its items (or tokens: `loss_per`) and of the second
over its pairs, on all devices. TRL's `ORPOTrainer` tokenises texts itself, truncates them and pads pairs side by side,
so its loop cannot take our tokens. The tests compare this loss with TRL's on the same batch.
"""

import torch
from torch.nn.functional import logsigmoid

from src.train.pair_rows import own_loss, pair_logprobs
from src.tree.rows import Row

SURE = -(2.0**-24)
"""Log-probabilities above this are 0 in fp32, where the odds are infinite and their gradient is NaN."""
LN2 = 0.6931471805599453


def loss(logprobs: torch.Tensor, row: Row, beta: float, totals: torch.Tensor) -> torch.Tensor:
    """A row's part of the step's loss. totals: the step's sums of `weight` and of `pair_weight`."""
    odds = log_odds_ratio(*pair_logprobs(logprobs, row).unbind(1))
    ratio = -(row["pair_weight"] * logsigmoid(odds)).sum()
    return own_loss(logprobs, row) / totals[0] + beta * ratio / totals[1]


def pair_measures(right: torch.Tensor, wrong: torch.Tensor) -> dict[str, torch.Tensor]:
    """Measures that evaluations average over pairs, (p,) each: the second term, and how well the pairs satisfy it."""
    odds = log_odds_ratio(right, wrong)
    return {
        "odds_ratio": -logsigmoid(odds),
        "log_odds": odds,
        "reward_accuracy": (right > wrong).float(),
        "reward_margin": right - wrong,
    }


def log_odds_ratio(right: torch.Tensor, wrong: torch.Tensor) -> torch.Tensor:
    """log odds(right) / odds(wrong) of log-probabilities, elementwise."""
    return (right - _log_rest(right)) - (wrong - _log_rest(wrong))


def _log_rest(logprobs: torch.Tensor) -> torch.Tensor:
    """log(1 - P), computed below and above one half by the form that loses no digits. Value and gradient are finite at
    P = 1.
    """
    logprobs = logprobs.clamp(max=SURE)
    near = torch.log(-torch.expm1(logprobs.clamp(min=-LN2)))
    far = torch.log1p(-torch.exp(logprobs.clamp(max=-LN2)))
    return torch.where(logprobs > -LN2, near, far)
