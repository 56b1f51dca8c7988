"""The questions of the notebooks in `eda/`: `from src.eda import findings as find`.

A question takes a `View` and gives a `Finding`: a picture, what it shows, and what follows for modelling. Every number
in a sentence is computed, and so is the conclusion drawn from it.
"""

from src.eda.display import open_view, show
from src.eda.questions.answers import categories, labels, options
from src.eda.questions.dialogues import lengths, speakers, targets, turn_lengths
from src.eda.questions.prompts import tokens
from src.eda.questions.splits import distances, items_per_dialogue, odd, sizes
from src.eda.questions.words import marks, word_cloud, words

__all__ = [
    "categories",
    "distances",
    "items_per_dialogue",
    "labels",
    "lengths",
    "marks",
    "odd",
    "open_view",
    "options",
    "show",
    "sizes",
    "speakers",
    "targets",
    "tokens",
    "turn_lengths",
    "word_cloud",
    "words",
]
