"""A run's adapter merged into its base, and what that changes."""

from collections.abc import Sequence
from typing import Any

from src.data import Item
from src.model import load as models
from src.prompt.encode import Encoder
from src.score.letters import score


def compare_merged(encoder: Encoder, network: Any, items: Sequence[Item]) -> tuple[Any, int, float]:
    """(merged model, answers that differ, largest difference of log-probabilities) of a run's adapter merged into
    its base. `network` is used up.
    """
    examples = encoder.for_scoring(items)
    assert encoder.letter_ids is not None
    before = score(network, examples, encoder.letter_ids, encoder.pad_id)
    network = models.merged(network)
    after = score(network, examples, encoder.letter_ids, encoder.pad_id)
    changed = sum(one.prediction != other.prediction for one, other in zip(before, after, strict=True))
    gap = max(
        abs(a - b)
        for one, other in zip(before, after, strict=True)
        for a, b in zip(one.logprobs, other.logprobs, strict=True)
    )
    return network, changed, gap
