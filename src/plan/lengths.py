"""Finds items that are too long for a backbone, before their length stops a run.

Tokens are counted with the backbone's tokenizer where it is on this machine, and else estimated from the characters
(src/plan/kinds.py). Nothing here uses the network.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import task
from src.console.cli import UserError
from src.data import Item
from src.files.kinds import fits
from src.files.paths import weights_folder
from src.files.reading import read_json
from src.model.backbones import backbones
from src.model.hub import cached_file
from src.model.recipes import Recipe
from src.plan.kinds import TURN_TOKENS, Kind, TextCounts, count_text, kind_of
from src.plan.known import known_base
from src.prompt.fewshot import Library
from src.prompt.prompts import Prompt, load_prompt, reasoning_of
from src.train.objectives import make_objective

if TYPE_CHECKING:
    from rich.table import Table

    from src.prompt.encode import Encoder

WORST = 1.5
"""Estimates are never too low by this factor. Nothing is counted while all estimates, times this, fit the context."""
PROBES, SAFETY = 16, 1.1
"""So many of the longest items are counted to see how far off estimates are; others may be off by this factor more."""
ADVICE = (
    "Nothing is cut: a run stops at an item that is too long. "
    "What helps: a shorter prompt, fewer examples in it, or doing without that backbone (--only)."
)


@dataclass(frozen=True)
class Lengths:
    """How long the items of one split are. `longest` and `too_long` are estimates unless `counted`."""

    split: str
    items: int
    longest: int
    """Tokens."""
    too_long: int
    """Items with more tokens than the context."""
    counted: bool


class Texts:
    """The texts of the splits, rendered once for all backbones: `train` with answers, other splits without."""

    def __init__(self, splits: Mapping[str, Sequence[Item]]) -> None:
        self.splits = splits
        self._libraries: dict[tuple[str, bool], Library | None] = {}
        self._counts: dict[tuple[str, str, bool, bool], list[tuple[TextCounts, int]]] = {}

    def library(self, prompt: Prompt, reasoning: bool) -> Library | None:
        """The examples of a prompt that has some. UserError when there is no training split."""
        if prompt.examples is None:
            return None
        key = prompt.text, reasoning
        if key not in self._libraries:
            self._libraries[key] = Library(self.splits.get("train", ()), prompt.examples, reasoning)
        return self._libraries[key]

    def items(self, recipe: Recipe, split: str) -> list[Item]:
        """The items of the split that a run of the recipe reads."""
        return [item for item in self.splits[split] if _is_read(recipe, split, item)]

    def estimates(self, recipe: Recipe, kind: Kind, split: str) -> list[float]:
        """About how many tokens the split's items have, in the order of `items`."""
        prompt, compares = load_prompt(recipe.prompt), make_objective(recipe).compares
        key = split, prompt.text, recipe.reasoning, compares
        if key not in self._counts:
            library = self.library(prompt, recipe.reasoning)
            self._counts[key] = [
                _count_item(prompt, item, library, recipe.reasoning, split == "train", compares)
                for item in self.splits[split]
            ]
        return [
            kind.tokens(counts) + TURN_TOKENS * turns
            for item, (counts, turns) in zip(self.splits[split], self._counts[key], strict=True)
            if _is_read(recipe, split, item)
        ]


def _is_read(recipe: Recipe, split: str, item: Item) -> bool:
    return split != "train" or recipe.only_category in (None, item.category)


def _count_item(
    prompt: Prompt, item: Item, library: Library | None, reasoning: bool, answered: bool, compares: bool
) -> tuple[TextCounts, int]:
    """(counts of the text, turns) of an item as a model reads it, with the right answer or, if the objective `compares`
    answers, with the longest.
    """
    examples = library.choose(item) if library else ()
    rendered = prompt.render(item, reasoning=reasoning, examples=examples)
    texts = [message["content"] for message in rendered.messages]
    if reasoning:
        texts.append(prompt.reasoned(reasoning_of(item) or "" if answered else ""))
    if answered:
        texts.append(max(rendered.answers, key=len) if compares or item.label is None else rendered.answers[item.label])
    return count_text("\n".join(texts)), len(rendered.messages) + 1


class Gauge:
    """Finds how long the items are for one recipe.

    encoder: the recipe's, if it already exists. trained: the folder of a trained run, which keeps its tokenizer.
    """

    def __init__(
        self, recipe: Recipe, texts: Texts, encoder: "Encoder | None" = None, trained: Path | None = None
    ) -> None:
        self.recipe, self.texts, self._given, self.trained = recipe, texts, encoder, trained
        self.kind = kind_of(recipe, known_base(recipe).shape)
        self.context = encoder.context if encoder else context_of(recipe)

    @cached_property
    def encoder(self) -> "Encoder | None":
        """The recipe's, with the tokenizer on this machine; None when there is none, or one that a run would refuse."""
        if self._given:
            return self._given
        folder = tokenizer_folder(self.recipe)
        if folder is None and self.trained is None:
            return None
        from src.runs.encoder import frozen_in, make_encoder

        prompt = load_prompt(self.recipe.prompt)
        library = self.texts.library(prompt, self.recipe.reasoning)
        if self.trained is not None:
            folder = weights_folder(self.trained)
        try:
            return make_encoder(self.recipe, prompt, folder, library, frozen_in(self.trained))
        except (UserError, OSError, ValueError):  # the run will say what is wrong with it
            return None

    def whole_split(self, split: str) -> Lengths:
        """Counts every item; without a tokenizer, estimates every item."""
        items = self.texts.items(self.recipe, split)
        tokens = self._count(split, items)
        found = tokens if tokens is not None else self.texts.estimates(self.recipe, self.kind, split)
        return self._lengths(split, found, tokens is not None)

    def near_limit(self, split: str) -> Lengths:
        """Counts only the items that may be too long, which is quicker; without a tokenizer, estimates every item."""
        found = self.texts.estimates(self.recipe, self.kind, split)
        if self.context is None or max(found, default=0) * WORST <= self.context:
            return self._lengths(split, found, counted=False)
        items = self.texts.items(self.recipe, split)
        by_length = sorted(range(len(items)), key=lambda index: -found[index])
        tokens = self._count(split, [items[index] for index in by_length[:PROBES]])
        if tokens is None:
            return self._lengths(split, found, counted=False)
        # The largest factor by which this tokenizer exceeds its estimates.
        factor = SAFETY * max(one / found[index] for one, index in zip(tokens, by_length, strict=False))
        near = [items[index] for index in by_length[PROBES:] if found[index] * factor > self.context]
        return self._lengths(split, [*tokens, *(self._count(split, near) or ())], counted=True)

    def _count(self, split: str, items: Sequence[Item]) -> list[int] | None:
        if self.encoder is None:
            return None
        try:
            answered = split == "train" and all(item.label is not None for item in items)
            return count(self.encoder, items, answered, make_objective(self.recipe).compares)
        except UserError:  # something else is wrong, and the run will say what
            return None

    def _lengths(self, split: str, tokens: Sequence[float], counted: bool) -> Lengths:
        too_long = 0 if self.context is None else sum(one > self.context for one in tokens)
        items = len(self.texts.items(self.recipe, split))
        return Lengths(split, items, round(max(tokens, default=0)), too_long, counted)


def count(
    encoder: "Encoder",
    items: Sequence[Item],
    answered: bool,
    compares: bool = False,
    orders: Sequence[str] | None = None,
) -> list[int]:
    """Tokens of each item, whether they fit the context or not.

    answered: with its answer, as in training. compares: with its longest answer. orders: of the options, by default the
    file's own. Without an answer, there is a number for each item and order.
    """
    encoder = copy.copy(encoder)
    encoder.context = None
    if not answered:
        return [len(one.ids) for one in encoder.for_scoring(items, orders or (task.current().file_order,))]

    def wrong(item: Item) -> list[int]:
        return [place for place in range(len(item.options)) if compares and place != item.label]

    return [max(map(len, one.sequences)) for one in encoder.for_training(items, wrong)]


def too_long(recipes: Sequence[Recipe], splits: Mapping[str, Sequence[Item]]) -> list[str]:
    """A line for each recipe whose run would stop at an item of `splits`, and one that says what helps; nothing when
    all items fit. A recipe with another fault has no line: its run will report it.
    """
    texts, lines = Texts(splits), []
    for recipe in recipes:
        try:
            gauge = Gauge(recipe, texts)
            found = [gauge.near_limit(split) for split in splits]
        except UserError:
            continue
        long = [one for one in found if one.too_long]
        if long:
            lines.append(f"{recipe.name}: " + line(long, gauge, recipe.prompt))
    return [*lines, ADVICE] if lines else []


def line(long: Sequence[Lengths], gauge: Gauge, prompt: str) -> str:
    """The line of `too_long` for a recipe. long: its splits with items that are too long."""
    how = "counted" if all(one.counted for one in long) else f"estimated, for a tokenizer like {gauge.kind.what}"
    parts = ", ".join(f"{one.split} {one.too_long} of {one.items}" for one in long)
    most = max(one.longest for one in long)
    return (
        f"items too long for its context of {gauge.context:,} tokens with prompt {prompt}: {parts}; "
        f"the longest has {most:,} ({how})"
    )


def table(gauges: Mapping[str, Gauge], found: Mapping[str, Sequence[Lengths]], title: str) -> "Table":
    """The lengths of every split by model, as a table to print."""
    from rich import box
    from rich.table import Table

    shown = Table("model", title=title, title_justify="left")
    # Narrow enough for 80 columns.
    shown.box, shown.collapse_padding, shown.pad_edge, shown.show_edge = box.SIMPLE_HEAD, True, False, False
    shown.columns[0].overflow = "fold"
    for name in ("split", "items", "longest", "context", "too long"):
        shown.add_column(name, justify="left" if name == "split" else "right", no_wrap=True)
    shown.add_column("how", no_wrap=True)
    for name, some in found.items():
        gauge = gauges[name]
        for one in some:
            context, long = (f"{gauge.context:,}", f"{one.too_long:,}") if gauge.context else ("?", "?")
            how = "counted" if one.counted else f"estimated as {gauge.kind.name}"
            shown.add_row(name, one.split, f"{one.items:,}", f"{one.longest:,}", context, long, how)
        shown.add_section()
    return shown


def context_of(recipe: Recipe) -> int | None:
    """The longest input in tokens that the base model takes, from its config on this machine or the table of backbones;
    None when neither says it.
    """
    place = _model_file(recipe.model_id, "config.json", recipe.revision)
    try:
        keys: Any = read_json(place) if place else {}
        found = keys.get("text_config", keys).get("max_position_embeddings")
    except (ValueError, AttributeError):  # loading the model will say what is wrong with it
        found = None
    found = found if fits(found, int) else None
    facts = backbones().get(recipe.backbone)
    if found is None and facts is not None and facts.model_id == recipe.model_id:
        return facts.context
    return found


def tokenizer_folder(recipe: Recipe) -> Path | None:
    """The folder of the recipe's tokenizer on this machine, which may be in the hub's cache; None when there is none,
    or no config of the model, which an encoder needs.
    """
    source = recipe.tokenizer or recipe.model_id
    revision = None if recipe.tokenizer else recipe.revision
    for name in ("tokenizer.json", "tokenizer.model"):
        file = _model_file(source, name, revision)
        if file is not None and _model_file(recipe.model_id, "config.json", recipe.revision) is not None:
            return file.parent
    return None


def _model_file(source: str, name: str, revision: str | None) -> Path | None:
    """A model's file on this machine, in its folder or in the hub's cache."""
    if Path(source).is_dir():
        return Path(source) / name if (Path(source) / name).is_file() else None
    return cached_file(source, name, revision)
