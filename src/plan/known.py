"""Facts about a recipe's base model without a download: from its folder, the table of backbones or the cache."""

from dataclasses import dataclass
from pathlib import Path

from src.console.start import find
from src.files.reading import read_json
from src.model.backbones import Backbone, backbones
from src.model.hub import cached_file
from src.model.recipes import Recipe
from src.model.shapes import Shape


@dataclass(frozen=True)
class KnownBase:
    """Facts about a base model. None: cannot be known yet.

    facts    its entry in the table of backbones
    place    "miniature" or "local folder", "" for a model of the hub
    """

    shape: Shape | None
    facts: Backbone | None
    place: str

    @property
    def parameters(self) -> float | None:
        if self.shape is not None:
            return self.shape.parameters
        return self.facts.parameters if self.facts is not None else None


def known_base(recipe: Recipe) -> KnownBase:
    facts = backbones().get(recipe.backbone)
    folder = Path(find(recipe.model_id))
    if folder.is_dir():
        shape = _shape_in(folder / "config.json")
        # A folder under a backbone's short name but of another size is its miniature, and not under its licence.
        same = facts is not None and shape is not None and abs(shape.parameters / facts.parameters - 1) < 0.05
        small = facts is not None and shape is not None and not same
        place = "miniature" if small or "miniature" in folder.parts else "local folder"
        return KnownBase(shape, facts if same else None, place)
    if facts is not None and facts.model_id == recipe.model_id:
        return KnownBase(Shape.of_backbone(facts), facts, "")
    config = cached_file(recipe.model_id, "config.json", recipe.revision)
    return KnownBase(_shape_in(config) if config else None, None, "")


def _shape_in(config: Path) -> Shape | None:
    try:
        return Shape.of_json(read_json(config))
    except (ValueError, TypeError, AttributeError, ArithmeticError):  # loading the model will say what is wrong with it
        return None
