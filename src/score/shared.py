"""Scoring on several ranks: each reads its share of the prompts, and all get all scores."""

from collections.abc import Callable, Sequence

from src.model import ranks
from src.prompt.encode import Example
from src.score.letters import HowRead, Scored
from src.tree.shares import shares


def score_shared(
    examples: Sequence[Example], score: Callable[[Sequence[Example]], Scored], all_score: bool = False
) -> Scored:
    """What `score` gives for all of `examples`, in the order of their items. Whole dialogues stay on a rank.

    all_score: whether a rank without a share also has to call `score`, on the first example.
    """
    if not ranks.several():
        return score(examples)
    parts = shares(examples, ranks.world())
    own = [examples[number] for number in parts[ranks.rank()]]
    mine = score(own or examples[:1]) if own or all_score else None
    found = [one for one in ranks.gathered(mine if own else None) if one is not None]
    scores = {item.id: item for one in found for item in one.items}
    # Of several ways to have been read, the record names the one that did not go as planned.
    how = max((one.how for one in found), key=_trouble)
    return Scored([scores[id] for id in dict.fromkeys(one.id for one in examples)], how)


def _trouble(how: HowRead) -> tuple[bool, bool]:
    return bool(how.obstacle), how.guard is not None and not how.guard.agree
