"""Merges a run's adapter into its base, and measures what that changes."""

from collections.abc import Sequence
from typing import Any

from src.data import Item
from src.model import load
from src.prompt.encode import Encoder
from src.score.letters import LetterScorer


def compare_merged(encoder: Encoder, scorer: LetterScorer, items: Sequence[Item]) -> tuple[Any, int, float]:
    """(merged model, answers that differ, largest difference of log-probabilities) of a run's adapter merged into
    its base. The scorer's model is used up.
    """
    examples = encoder.for_scoring(items)
    before = scorer.score(examples).items
    network = load.merged(scorer.model)
    after = LetterScorer(network, scorer.letter_ids, scorer.pad_id, scorer.share).score(examples).items
    changed = sum(one.prediction != other.prediction for one, other in zip(before, after, strict=True))
    gap = max(
        abs(a - b)
        for one, other in zip(before, after, strict=True)
        for a, b in zip(one.logprobs, other.logprobs, strict=True)
    )
    return network, changed, gap
