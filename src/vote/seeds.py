"""Compares recipes, each by its runs under several seeds, on a labelled split."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from src.runs.recipe_groups import RecipeGroup
from src.vote.comparison import Comparison

if TYPE_CHECKING:
    from src.worth.seeds import RecipePair, Spread


@dataclass(frozen=True)
class SeedComparison:
    """spreads            group's name → its runs' accuracies
    category_balanced  group's name → mean over its runs of the mean accuracy of categories
    """

    groups: Sequence[RecipeGroup]
    spreads: "Mapping[str, Spread]"
    category_balanced: Mapping[str, float]
    pairs: "Sequence[RecipePair]"

    def as_json(self) -> dict[str, Any]:
        return {
            "recipes": [
                {"name": group.name, "runs": group.seeds}
                | asdict(self.spreads[group.name])
                | {"category_balanced": self.category_balanced[group.name]}
                for group in self.groups
            ],
            "pairs": [asdict(pair) | {"better": pair.better} for pair in self.pairs],
        }


def compare_seeds(found: Comparison, groups: Sequence[RecipeGroup]) -> SeedComparison:
    """`groups` are of the runs in `found`."""
    import numpy as np

    from src.worth.seeds import compare_recipes, spread

    labels = np.array([item.label for item in found.items])
    right = {
        group.name: np.array([np.array(found.answers[run]) == labels for run in group.seeds], dtype=float)
        for group in groups
    }
    return SeedComparison(
        groups,
        {name: spread(hits.mean(axis=1).tolist()) for name, hits in right.items()},
        {group.name: fmean(found.results[run].category_balanced for run in group.seeds) for group in groups},
        compare_recipes(right, [item.dialogue_key for item in found.items]),
    )
