"""The settings of a search, and the objects it works with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.console.cli import UserError
from src.data import Item
from src.model.recipes import SEED
from src.prompt.prompts import Prompt
from src.score.item_scores import ItemScores
from src.search.calls import Calls

Scorer = Callable[[Prompt, Sequence[Item]], list[ItemScores]]


@dataclass(frozen=True)
class SearchSettings:
    """Settings that decide a search.

    batch_size      items that the critic reads in a step, missed ones first
    categories      whether the category sentences may change, too
    alpha, margin   a prompt is kept when it wins on the held-out items with a two-sided p of McNemar's exact test up to
                    alpha, or, with a margin, when it gets at least this share more of them right
    held_out        share of the dialogues that are held out
    max_calls       of the critic, over all sessions of a search
    max_tokens      of the system text
    """

    steps: int = 10
    batch_size: int = 8
    categories: bool = False
    alpha: float = 0.05
    margin: float | None = None
    held_out: float = 0.5
    max_calls: int = 60
    max_tokens: int = 768
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"--{name}: found {getattr(self, name)}, allowed: {allowed}"
            for name, fine, allowed in (
                ("steps", self.steps >= 1, "1 or more"),
                ("batch_size", self.batch_size >= 1, "1 or more"),
                ("alpha", 0 < self.alpha <= 1, "above 0, up to 1"),
                ("margin", self.margin is None or 0 < self.margin < 1, "between 0 and 1"),
                ("held_out", 0 < self.held_out < 1, "between 0 and 1"),
                ("max_calls", self.max_calls >= 1, "1 or more"),
                ("max_tokens", self.max_tokens >= 1, "1 or more"),
                ("seed", SEED.holds(self.seed), SEED.words),
            )
            if not fine
        ]
        if problems:
            raise UserError("; ".join(problems) + ".")


@dataclass(frozen=True)
class Search:
    """The objects a search works with.

    start          the prompt that it begins with
    learn          labelled items that the critic reads of
    held           labelled items on which a new prompt has to win; the critic never reads them
    score          the scores of items by the model under test, with a prompt
    calls          asks the critic
    count_tokens   of a text, in tokens of the model under test
    folder         keeps the steps
    """

    settings: SearchSettings
    start: Prompt
    learn: Sequence[Item]
    held: Sequence[Item]
    score: Scorer
    calls: Calls
    count_tokens: Callable[[str], int]
    folder: Path
