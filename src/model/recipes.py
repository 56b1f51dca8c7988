"""Recipes: one YAML file holds a backbone and every setting of its training and scoring.

Precedence, once: the defaults below, then the recipe file, then the flags. Facts about a backbone (hub id, licence,
chat template) come from the one table `resource/backbones.yaml`; a recipe for any other model gives its `model_id`
itself.
"""

import argparse
import dataclasses
import difflib
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from src.console.cli import UserError, nearest
from src.console.other_names import hint
from src.console.start import find, ours
from src.data import CATEGORIES
from src.files.yaml_files import load_yaml

BACKBONES = ours("resource/backbones.yaml")
RECIPES = ours("resource/recipes")

METHODS = ("full", "lora", "qlora")
ORPO = "orpo"
"""As an objective: preference pairs are learned. As a method, which a recipe may ask for: so, with all parameters."""
CHOICES: dict[str, tuple[str, ...]] = {
    "method": (*METHODS, ORPO),
    "objective": ("answer", "letter", "letters", ORPO, "ranking"),
    "orpo_pairs": ("both", "one"),
    "orpo_answer": ("whole", "letter"),
    "orpo_nll": ("answer", "prompt"),
    "loss_per": ("item", "token"),
    "system_turn": ("auto", "own", "folded"),
    "optimizer": ("auto", "fp32", "fp32-8bit", "bf16-stochastic"),
    "gradient_checkpointing": ("auto", "on", "off"),
    "order": ("shuffled", "dialogue"),
    "share_prefixes": ("auto", "on", "off"),
    "only_category": CATEGORIES,
    "lr_scheduler": ("linear", "cosine", "constant", "constant_with_warmup"),
}
POSITIVE = (
    "lr",
    "batch_size",
    "gradient_accumulation_steps",
    "epoch",
    "lora_r",
    "lora_alpha",
    "eval_steps",
    "early_stopping_patience",
)
NOT_NEGATIVE = ("warmup_steps", "weight_decay", "max_grad_norm", "lora_dropout", "orpo_beta")


@dataclasses.dataclass(frozen=True)
class Backbone:
    """One row of `resource/backbones.yaml`: what is known of a base model before it is downloaded."""

    short: str
    model_id: str
    licence: str
    commercial: bool
    """False when the licence forbids commercial use."""
    gated: bool
    parameters: float
    download_bytes: float
    hidden_size: int
    layers: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    context: int
    tokens_like: str
    """The kind of its tokenizer, a row of `resource/tokenizers.yaml`."""
    revision: str | None = None
    chat_template: str | None = None
    note: str = ""
    expect: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Entries of the model's config that must hold, since copies with other values are about."""


def _setting(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Every setting of one run. The field names are the YAML keys and the flags."""

    name: str = _setting(
        "", "name of the run, its folder and its row in every table; the recipe file's name by default"
    )
    backbone: str = _setting("", "short name of the base model, a row of resource/backbones.yaml or a new one")
    model_id: str = _setting("", "hub id or local folder of the base model; the backbone's own by default")
    tokenizer: str | None = _setting(None, "hub id or local folder of the tokenizer, when it is not the model's")
    revision: str | None = _setting(None, "commit of the hub repository; the record keeps the one that was loaded")
    tokenizer_revision: str | None = _setting(None, "commit of the tokenizer's repository, when it has its own")
    licence: str | None = _setting(None, "licence of the base model, for the tables")
    trust_remote_code: bool = _setting(False, "run Python code that the model repository ships")
    chat_template: str | None = _setting(
        None, "Jinja2 chat template, as text or as a file, in place of the tokenizer's own"
    )
    system_turn: str = _setting("auto", "keep a system turn, or fold it into the user's; auto asks the template")
    method: str = _setting(
        "qlora", "which weights are trained, and how the base is kept; orpo: all of them, with objective orpo"
    )
    lr: float = _setting(2e-5, "peak learning rate")
    batch_size: int = _setting(1, "items of one forward and backward pass on each device")
    gradient_accumulation_steps: int = _setting(1, "passes of one optimizer step")
    epoch: int = _setting(3, "passes over the training items")
    warmup_steps: float = _setting(0.0, "optimizer steps of warm-up; below 1 a share of all steps")
    lr_scheduler: str = _setting("linear", "how the learning rate falls")
    weight_decay: float = _setting(0.0, "AdamW's weight decay")
    max_grad_norm: float = _setting(1.0, "gradients are clipped to this norm; 0 for no clipping")
    lora_r: int = _setting(6, "rank of the adapters")
    lora_alpha: int = _setting(8, "scale of the adapters is lora_alpha / lora_r")
    lora_dropout: float = _setting(0.05, "dropout in front of the adapters")
    lora_targets: str = _setting("all-linear", "layers with adapters: all-linear, or names separated by commas")
    objective: str = _setting(
        "answer",
        "loss over the whole answer, its letter, or the letter among the task's letters alone; orpo: preference of the "
        "right answer over wrong ones; ranking: the right answer's likelihood above that of wrong ones",
    )
    orpo_beta: float = _setting(0.1, "orpo: weight of the odds ratio beside the right answer's own loss")
    orpo_pairs: str = _setting(
        "both", "orpo and ranking: the right answer against both wrong ones (all), or against one drawn by seed"
    )
    orpo_answer: str = _setting(
        "whole", "orpo and ranking: answers are compared as the prompt has them, or by their letter alone"
    )
    orpo_nll: str = _setting("answer", "orpo: the right answer's own loss is over the answer, or over the prompt, too")
    loss_per: str = _setting("item", "an optimizer step averages over its items, or over all their supervised tokens")
    optimizer: str = _setting(
        "auto", "method full: fp32 master weights, with 8-bit states, or bf16 with stochastic rounding"
    )
    gradient_checkpointing: str = _setting(
        "auto", "recompute activations in the backward pass; auto: when memory asks for it"
    )
    order: str = _setting(
        "shuffled", "items of a step are drawn one by one, or dialogue by dialogue, which shares more"
    )
    share_prefixes: str = _setting(
        "auto", "compute what items begin alike with once: the same mathematics, faster; auto: where it saves enough"
    )
    eval_steps: int | None = _setting(None, "optimizer steps between evaluations on dev; once an epoch by default")
    early_stopping_patience: int | None = _setting(
        None, "stop after so many evaluations without a better one; never by default"
    )
    prompt: str = _setting(
        "entry", "name of a file in resource/prompts, or a path to one; +name behind it for each of its strategies"
    )
    reasoning: bool = _setting(False, "the letter stands behind reasoning: the data's in training, else generated")
    only_category: str | None = _setting(None, "train on, and choose weights by, the items of this category alone")
    seed: int = _setting(42, "seed of everything random")

    @property
    def method_words(self) -> str:
        """The method as tables show it: `orpo` is all parameters with objective orpo, `lora orpo` adapters with it."""
        if self.objective != ORPO:
            return self.method
        return ORPO if self.method == "full" else f"{self.method} {ORPO}"

    @property
    def overrides_template(self) -> bool:
        """Whether its chat template goes before the tokenizer's own. The table's is for tokenizers without; any other
        one was given on purpose.
        """
        facts = backbones().get(self.backbone)
        return self.chat_template is not None and (facts is None or self.chat_template != facts.chat_template)

    def replace(self, **changes: Any) -> "Recipe":
        return dataclasses.replace(self, **changes)

    def dump(self) -> str:
        """The recipe as YAML, every setting named; loading it gives the same recipe."""
        return yaml.safe_dump(dataclasses.asdict(self), allow_unicode=True, sort_keys=False, width=120)


SEEDS = 2**32
"""How many there are for numpy, and so for all."""
FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}
_HINTS = get_type_hints(Recipe)


@functools.cache
def backbones(path: Path = BACKBONES) -> dict[str, Backbone]:
    """The table of backbones by short name."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {short: Backbone(short=short, **values) for short, values in raw.items()}


def make_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """A checked recipe from `values`, completed from the table of backbones. All problems in one message; `where`
    names the source.
    """
    problems, clean = [], {}
    values = spelled_out(values)
    for key, value in values.items():
        if key not in FIELDS:
            problems.append(f"unknown key {key!r}.{hint(str(key), FIELDS) or nearest(str(key), FIELDS)}")
            continue
        try:
            clean[key] = _convert(key, value)
        except ValueError as error:
            problems.append(str(error))
    for key, allowed in CHOICES.items():
        if clean.get(key) is not None and clean[key] not in allowed:
            problems.append(
                f"{key}: found {clean[key]!r}, allowed: {', '.join(allowed)}.{nearest(str(clean[key]), allowed)}"
            )
    for keys, least in ((POSITIVE, "above 0"), (NOT_NEGATIVE, "0 or more")):
        for key in keys:
            value = clean.get(key)
            if isinstance(value, int | float) and (value < 0 or (value == 0 and least == "above 0")):
                problems.append(f"{key}: found {value}, allowed: {least}")
    if clean.get("method") == ORPO:
        problems.append(f"method: orpo means objective orpo; found objective {clean.get('objective')!r}")
    if not 0 <= clean.get("seed", 0) < SEEDS:
        problems.append(f"seed: found {clean['seed']}, allowed: 0 to {SEEDS - 1}")
    if clean.get("lora_dropout", 0) >= 1:
        problems.append(f"lora_dropout: found {clean['lora_dropout']}, allowed: below 1")
    if clean.get("reasoning") and clean.get("objective", "answer") != "answer":
        problems.append(
            f"objective: found {clean['objective']}, allowed with reasoning: answer, whose loss is on it, too"
        )
    if problems:
        raise UserError(f"{where}: " + "; ".join(problems))
    recipe = Recipe(**clean)
    table = backbones()
    if not recipe.backbone and recipe.model_id:
        by_id = {row.model_id: short for short, row in table.items()}
        place = Path(recipe.model_id)
        recipe = recipe.replace(
            backbone=by_id.get(recipe.model_id, (place.resolve() if place.is_dir() else place).name)
        )
    facts = table.get(recipe.backbone)
    if facts is None and not recipe.model_id:
        raise UserError(
            f"{where}: backbone {recipe.backbone!r} is not in {BACKBONES} and no model_id is given. "
            f"Known: {', '.join(table)}.{nearest(recipe.backbone, table)} For any other model set model_id (hub "
            f"id or folder)."
        )
    if facts is not None and recipe.model_id in ("", facts.model_id):
        recipe = recipe.replace(
            model_id=facts.model_id,
            revision=recipe.revision or facts.revision,
            licence=recipe.licence or facts.licence,
        )
    if recipe.chat_template is not None:
        recipe = recipe.replace(chat_template=template_text(recipe.chat_template, where))
    if facts is not None and recipe.chat_template is None:
        recipe = recipe.replace(chat_template=facts.chat_template)
    recipe = recipe if recipe.name else recipe.replace(name=recipe.backbone)
    if recipe.name in (".", "..") or Path(recipe.name).name != recipe.name:
        raise UserError(f"{where}: name: found {recipe.name!r}, allowed: the name of one folder, without slashes")
    return recipe


def template_text(value: str, where: str) -> str:
    """A chat template given as text, or as the name of a file that holds it; `where` names it in messages."""
    if "\n" in value or "{" in value:
        return value
    path = Path(value)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "this is no Jinja2 text, and there is no such file" if not path.exists() else f"cannot be read: {error}"
        raise UserError(f"{where}: chat_template {value!r}: {why}.") from error
    if not text.strip():
        raise UserError(f"{where}: chat_template: the file {value} is empty.")
    return text


def spelled_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of one file or command line, where `method: orpo` becomes the two settings that it stands for. Those of
    the file, so that a later `--method lora` changes which weights are trained and not what they learn.
    """
    if values.get("method") != ORPO or values.get("objective", ORPO) != ORPO:
        return dict(values)
    return {**values, "method": "full", "objective": ORPO}


def load_recipe(path: str | Path, flags: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in the YAML file at `path`, with `flags` on top."""
    path = _recipe_file(Path(find(str(path))))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: this is not YAML in UTF-8: {error}") from error
    raw = load_yaml(text, str(path))
    if raw is None:
        raise UserError(
            f"{path} is empty. A recipe has one line at least: `model_id: ID`, or `backbone: NAME` with one of "
            f"{', '.join(backbones())}."
        )
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a recipe is a mapping of settings; found {type(raw).__name__}.")
    of_file = {"name": path.stem, **spelled_out(raw)}
    try:
        return make_recipe({**of_file, **spelled_out(flags or {})}, str(path))
    except UserError:
        if not flags or not _is_sound(of_file):
            raise
        return make_recipe({**of_file, **spelled_out(flags)}, "command line")


def _recipe_file(path: Path) -> Path:
    """The file at `path`; or, for the bare name of one, the one recipe of that name, the published one first."""
    if path.is_file():
        return path
    everywhere = sorted(RECIPES.rglob("*.yaml"))
    if path.name == str(path) and not path.is_dir():
        named = [file for file in everywhere if file.stem == path.name.removesuffix(".yaml")]
        published = [file for file in named if file.parent == RECIPES / "published"]
        if len(published or named) == 1:
            return (published or named)[0]
        if named:
            raise UserError(f"--recipe {path}: several have this name: {', '.join(map(str, named))}. Give one whole.")
    folder = path if path.is_dir() else path.parent
    known = [str(file) for file in (sorted(folder.glob("*.yaml")) if folder != Path() else []) or everywhere]
    by_name = {Path(file).stem: file for file in known}
    close = difflib.get_close_matches(path.stem, by_name, n=1, cutoff=0.6)
    what = f"there is no recipe {path}.{f' Did you mean {by_name[close[0]]!r}?' if close else ''}"
    if path.is_dir():
        what = f"{path} is a folder, not a recipe."
    raise UserError(f"{what} Known: {', '.join(known) or 'none'}.")


def _is_sound(values: Mapping[str, Any]) -> bool:
    try:
        make_recipe(values, "")
    except UserError:
        return False
    return True


def load_recipes(
    folders: str | Path | Sequence[Path], only: Sequence[str] = (), objective: str | None = None
) -> dict[Path, Recipe]:
    """The recipes of a folder, or of several, by file, or those whose file name is in `only`, or those with an
    `objective`; recipes of the same weights follow each other.
    """
    folders = [Path(folders)] if isinstance(folders, str | Path) else list(folders)
    where = " and ".join(map(str, folders))
    files = [path for folder in folders for path in sorted(folder.glob("*.yaml"))]
    for folder in folders:
        if not any(path.parent == folder for path in files):
            raise UserError(f"there is no recipe (*.yaml) in {folder}.")
    recipes = {path: load_recipe(path) for path in files if objective or not only or path.stem in only}
    if objective:
        recipes = {path: recipe for path, recipe in recipes.items() if recipe.objective == objective}
    known = [path.stem for path in (recipes if objective else files)]
    kind = f"recipe with objective {objective}" if objective else "recipe"
    if not known:
        raise UserError(f"there is no {kind} in {where}.")
    for name in only:
        if name not in known:
            raise UserError(f"there is no {kind} {name!r} in {where}. Known: {', '.join(known)}.{nearest(name, known)}")
    recipes = {path: recipe for path, recipe in recipes.items() if not only or path.stem in only}
    names = [recipe.name for recipe in recipes.values()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: two recipes make the same run: {', '.join(twice)}. Give each its own `name`.")
    weights = [recipe.model_id for recipe in recipes.values()]
    return dict(sorted(recipes.items(), key=lambda pair: weights.index(pair[1].model_id)))


def differing_settings(there: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Settings in which a run's recipe, as its record holds it, differs; one it does not name had the default."""
    return [key for key, field in FIELDS.items() if there.get(key, field.default) != getattr(recipe, key)]


def add_recipe_flag(parser: argparse._ActionsContainer) -> None:
    named = "a recipe's file, or its name: polar is resource/recipes/published/polar.yaml"
    parser.add_argument("--recipe", type=Path, metavar="FILE", help=named)


def add_flags(parser: argparse._ActionsContainer, only: Collection[str] = ()) -> None:
    """A flag for every setting of a recipe, or for the `only` ones; without those `--recipe`, too, and a group."""
    group = parser
    if not only:
        add_recipe_flag(parser)
        group = parser.add_argument_group("settings of the recipe")
    for name, field in ((name, field) for name, field in FIELDS.items() if name in (only or FIELDS)):
        shown = "" if field.default in (None, "") else f" (default: {field.default})"
        help = (field.metadata["help"] + shown).replace("%", "%%")
        if _HINTS[name] is bool:
            group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=None, help=help)
        else:
            group.add_argument(
                f"--{name}",
                choices=CHOICES.get(name),
                default=None,
                metavar=None if name in CHOICES else "X",
                help=help,
            )


def read_recipe(arguments: argparse.Namespace, **defaults: Any) -> Recipe:
    """The recipe that the command line names: `defaults` of the command, then the file, then the flags."""
    flags = {name: value for name in FIELDS if (value := getattr(arguments, name, None)) is not None}
    if arguments.recipe:
        return load_recipe(arguments.recipe, flags)
    if not flags.get("model_id") and not flags.get("backbone"):
        raise UserError("give a --recipe (for example resource/recipes/published/polar.yaml) or a --model_id.")
    return make_recipe({**spelled_out(defaults), **spelled_out(flags)}, "command line")


def _convert(key: str, value: Any) -> Any:
    """`value` in the type of the field; YAML 1.1 reads 2e-5 as text, and flags are text anyway."""
    kinds = get_args(_HINTS[key]) or (_HINTS[key],)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    if kind is bool:
        if isinstance(value, bool):
            return value
    elif not isinstance(value, bool | list | dict) and value is not None:
        if kind is str:
            return str(value)
        if kind is int and isinstance(value, int):
            return value  # a float would round large ones
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number) and (kind is float or number == int(number)):
            return kind(number)
    raise ValueError(
        f"{key}: found {value!r}, allowed: "
        f"{'a number' if kind is float else 'a whole number' if kind is int else kind.__name__}"
    )
