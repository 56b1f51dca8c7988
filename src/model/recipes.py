"""Recipes: every setting of a run's training and scoring, and the checks that each must pass.

Precedence, once: the defaults below, then the recipe file (src/model/recipe_files.py), then the flags
(src/model/recipe_flags.py). Facts about a backbone (hub id, licence, chat template) come from the table of backbones; a
recipe for any other model gives its `model_id` itself.

To add a setting, add a field to `Recipe`: its choices and bounds stand beside it, and the flag follows from it.
"""

import contextlib
import dataclasses
import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from src import task
from src.console.cli import UserError, nearest
from src.console.other_names import hint
from src.console.terminal import name_problem
from src.files.paths import is_file, is_folder
from src.files.reading import exact_float, read_text, shortened, whole_number
from src.files.templates import MOST_BYTES
from src.files.yaml_files import dump_yaml
from src.model.backbones import BACKBONES, Backbone, backbones

METHODS = ("full", "lora", "qlora")
ORPO = "orpo"
"""The objective that learns from preference pairs. `method: orpo` in a recipe means this objective with method full."""
OBJECTIVES = ("answer", "letter", "letters", ORPO, "ranking")
FP32, FP32_8BIT, BF16_STOCHASTIC = OPTIMIZERS = ("fp32", "fp32-8bit", "bf16-stochastic")
"""How AdamW keeps weights and moments: fp32 throughout, moments in 8 bits, or weights in bf16 too."""
SEEDS = 2**32
"""Number of seeds that numpy takes; the other libraries take more."""
LONGEST_TEXT, LONGEST_NAME = 4_000, 200
"""Characters of a path, and of a file's or folder's name, which file systems bound by 255 bytes."""


class TaskCategories(Sequence[str]):
    """The categories of the current task, looked up at each use: `--task` may change the task after the import."""

    def __getitem__(self, index: Any) -> Any:
        return task.current().categories[index]

    def __len__(self) -> int:
        return len(task.current().categories)


@dataclasses.dataclass(frozen=True)
class Bound:
    """A limit on a number, in words and as a test."""

    words: str
    holds: Callable[[float], bool]


POSITIVE = Bound("above 0", lambda value: value > 0)
NOT_NEGATIVE = Bound("0 or more", lambda value: value >= 0)
BELOW_ONE = Bound("below 1", lambda value: value < 1)
SEED = Bound(f"0 to {SEEDS - 1}", lambda value: 0 <= value < SEEDS)


def _setting(default: Any, help: str, *bounds: Bound, choices: Sequence[str] | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "bounds": bounds, "choices": choices})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Every setting of one run. The field names are the YAML keys and the flags."""

    name: str = _setting(
        "", "name of the run, its folder and its row in every table; the recipe file's name by default"
    )
    backbone: str = _setting("", "short name of the base model, an entry of resource/backbones.yaml or a new one")
    model_id: str = _setting("", "hub id or local folder of the base model; the backbone's own by default")
    tokenizer: str | None = _setting(None, "hub id or local folder of the tokenizer, when it is not the model's")
    revision: str | None = _setting(None, "commit of the hub repository; the record keeps the one that was loaded")
    tokenizer_revision: str | None = _setting(None, "commit of the tokenizer's repository, when it has its own")
    licence: str | None = _setting(None, "licence of the base model, for the tables")
    trust_remote_code: bool = _setting(
        False, "the model needs Python code that comes with it; only this flag, given anew each time, lets it run"
    )
    chat_template: str | None = _setting(
        None, "Jinja2 chat template, as text or as a file, in place of the tokenizer's own"
    )
    system_turn: str = _setting(
        "auto",
        "keep a system turn, or fold it into the user's; auto asks the template",
        choices=("auto", "own", "folded"),
    )
    method: str = _setting(
        "qlora",
        "which weights are trained, and how the base is kept; orpo: all of them, with objective orpo",
        choices=(*METHODS, ORPO),
    )
    lr: float = _setting(2e-5, "peak learning rate", POSITIVE)
    batch_size: int = _setting(
        1,
        "items of an optimizer step, times gradient_accumulation_steps; memory decides how many are computed at once",
        POSITIVE,
    )
    gradient_accumulation_steps: int = _setting(1, "an optimizer step has so many times batch_size items", POSITIVE)
    epoch: int = _setting(3, "passes over the training items", POSITIVE)
    warmup_steps: float = _setting(0.0, "optimizer steps of warm-up; below 1 a share of all steps", NOT_NEGATIVE)
    lr_scheduler: str = _setting(
        "linear", "how the learning rate falls", choices=("linear", "cosine", "constant", "constant_with_warmup")
    )
    weight_decay: float = _setting(0.0, "AdamW's weight decay", NOT_NEGATIVE)
    max_grad_norm: float = _setting(1.0, "gradients are clipped to this norm; 0 for no clipping", NOT_NEGATIVE)
    lora_r: int = _setting(6, "rank of the adapters", POSITIVE)
    lora_alpha: int = _setting(8, "scale of the adapters is lora_alpha / lora_r", POSITIVE)
    lora_dropout: float = _setting(0.05, "dropout in front of the adapters", NOT_NEGATIVE, BELOW_ONE)
    lora_targets: str = _setting("all-linear", "layers with adapters: all-linear, or names separated by commas")
    objective: str = _setting(
        "answer",
        "loss over the whole answer, its letter, or its letter among the task's letters alone; "
        "orpo: preference of the right answer over wrong ones; "
        "ranking: the right answer's likelihood above that of wrong ones",
        choices=OBJECTIVES,
    )
    orpo_beta: float = _setting(0.1, "orpo: weight of the odds ratio beside the right answer's own loss", NOT_NEGATIVE)
    orpo_pairs: str = _setting(
        "both",
        "orpo and ranking: the right answer against both wrong ones (all), or against one drawn by seed",
        choices=("both", "one"),
    )
    orpo_answer: str = _setting(
        "whole",
        "orpo and ranking: answers are compared as the prompt has them, or by their letter alone",
        choices=("whole", "letter"),
    )
    orpo_nll: str = _setting(
        "answer",
        "orpo: the right answer's own loss is over the answer, or over the prompt, too",
        choices=("answer", "prompt"),
    )
    loss_per: str = _setting(
        "item",
        "an optimizer step averages over its items, or over all their supervised tokens",
        choices=("item", "token"),
    )
    optimizer: str = _setting(
        "auto",
        "method full: fp32 master weights, with 8-bit states, or bf16 with stochastic rounding",
        choices=("auto", *OPTIMIZERS),
    )
    gradient_checkpointing: str = _setting(
        "auto",
        "recompute activations in the backward pass; auto: when memory asks for it",
        choices=("auto", "on", "off"),
    )
    fsdp: str = _setting(
        "auto",
        "method full on several GPUs: shard it over them (FSDP2); auto: if one cannot hold it, or accelerate says so",
        choices=("auto", "on", "off"),
    )
    order: str = _setting(
        "shuffled",
        "items of a step are drawn one by one, or dialogue by dialogue, which shares more",
        choices=("shuffled", "dialogue"),
    )
    share_prefixes: str = _setting(
        "auto",
        "compute what items begin alike with once: the same mathematics, faster; auto: where it saves enough",
        choices=("auto", "on", "off"),
    )
    eval_steps: int | None = _setting(
        None, "optimizer steps between evaluations on dev; once an epoch by default", POSITIVE
    )
    early_stopping_patience: int | None = _setting(
        None, "stop after so many evaluations without a better one; never by default", POSITIVE
    )
    keep: str = _setting(
        "best",
        "weights that the run keeps: those of the evaluation with most right dev items, or the last ones, so that dev "
        "chooses nothing",
        choices=("best", "last"),
    )
    prompt: str = _setting(
        "entry", "name of a file in resource/prompts, or a path to one; +name after it for each of its strategies"
    )
    reasoning: bool = _setting(False, "the letter comes after reasoning: the data's in training, else generated")
    only_category: str | None = _setting(
        None,
        "train on, and choose weights by, the items of this category alone",
        choices=TaskCategories(),
    )
    seed: int = _setting(42, "seed of everything random", SEED)

    @property
    def method_words(self) -> str:
        """The method as tables show it: `orpo` is all parameters with objective orpo, `lora orpo` adapters with it."""
        if self.objective != ORPO:
            return self.method
        return ORPO if self.method == "full" else f"{self.method} {ORPO}"

    @property
    def overrides_template(self) -> bool:
        """Whether its chat template takes precedence over the tokenizer's own. The table's templates are for tokenizers
        without one; any other template was given deliberately.
        """
        facts = backbones().get(self.backbone)
        return self.chat_template is not None and (facts is None or self.chat_template != facts.chat_template)

    def replace(self, **changes: Any) -> "Recipe":
        return dataclasses.replace(self, **changes)

    def dump(self) -> str:
        """The recipe as YAML, every setting named; loading it gives the same recipe."""
        return dump_yaml(dataclasses.asdict(self))


FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}
CHOICES: dict[str, Sequence[str]] = {
    name: field.metadata["choices"] for name, field in FIELDS.items() if field.metadata["choices"] is not None
}
KINDS: dict[str, type] = {name: (get_args(kind) or (kind,))[0] for name, kind in get_type_hints(Recipe).items()}
"""The type of each setting; None is also allowed where it is the default."""


def make_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """A checked recipe from `values`, completed from the table of backbones. All problems in one message; `where`
    names the source.
    """
    clean, problems = _convert_all(spelled_out(values))
    problems += [problem for name, value in clean.items() for problem in _value_problems(name, value)]
    problems += _conflicts(clean)
    if problems:
        raise UserError(f"{where}: " + "; ".join(problems))
    recipe = _named_backbone(Recipe(**clean))
    facts = backbones().get(recipe.backbone)
    if facts is None and not recipe.model_id:
        raise UserError(
            f"{where}: backbone {recipe.backbone!r} is not in {BACKBONES} and no model_id is given. "
            f"Known: {', '.join(backbones())}.{nearest(recipe.backbone, backbones())} "
            "For any other model set model_id (hub id or folder)."
        )
    if recipe.chat_template is not None:
        recipe = recipe.replace(chat_template=template_text(recipe.chat_template, where))
    if facts is not None:
        recipe = _completed(recipe, facts)
    recipe = recipe.replace(name=recipe.name or recipe.backbone)
    if recipe.name in (".", "..") or Path(recipe.name).name != recipe.name or len(recipe.name.encode()) > LONGEST_NAME:
        raise UserError(
            f"{where}: name: found {recipe.name!r}, allowed: the name of one folder, "
            f"without slashes, up to {LONGEST_NAME} bytes"
        )
    return recipe


def spelled_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of one file or command line, where `method: orpo` becomes the two settings that it stands for.

    This is done for each source by itself, so that `--method lora` on top of such a file changes which weights are
    trained and not what they learn.
    """
    if values.get("method") != ORPO or values.get("objective", ORPO) != ORPO:
        return dict(values)
    return {**values, "method": "full", "objective": ORPO}


def template_text(value: str, where: str) -> str:
    """A chat template given as text, or as the name of a file that holds it; `where` names it in messages."""
    if "\n" in value or "{" in value:
        return value
    path = Path(value)
    if not is_file(path):
        raise UserError(
            f"{where}: chat_template {shortened(value, 200)!r}: this is no Jinja2 text, and there is no such file."
        )
    text = read_text(path, MOST_BYTES)
    if not text.strip():
        raise UserError(f"{where}: chat_template: the file {value} is empty.")
    return text


def differing_settings(there: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Settings in which a run's recipe, as its record holds it, differs. A setting that the record does not name had
    its default.
    """
    return [name for name, field in FIELDS.items() if there.get(name, field.default) != getattr(recipe, name)]


# Checks


def _convert_all(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(values in the types of their settings, what is wrong with the others)."""
    clean, problems = {}, []
    for name, value in values.items():
        if name not in FIELDS:
            problems.append(f"unknown key {name!r}.{hint(str(name), FIELDS) or nearest(str(name), FIELDS)}")
            continue
        try:
            clean[name] = _convert(name, value)
        except ValueError as error:
            problems.append(str(error))
    return clean, problems


def _convert(name: str, value: Any) -> Any:
    """`value` in the type of the setting; YAML 1.1 reads 2e-5 as text, and flags are text anyway."""
    kind = KINDS[name]
    if value is None and FIELDS[name].default is None:
        return None
    if kind is bool:
        if isinstance(value, bool):
            return value
    elif isinstance(value, str | int | float | datetime.date) and not isinstance(value, bool):
        if kind is str:
            return str(value)
        with contextlib.suppress(ValueError, OverflowError):
            return _number(kind, value)
    allowed = {float: "a number", int: "a whole number"}.get(kind, kind.__name__)
    raise ValueError(f"{name}: found {shortened(repr(value), 200)}, allowed: {allowed}")


def _number(kind: type, value: Any) -> float:
    """`value` as an int or a float. ValueError or OverflowError when it is none, or when it would be changed."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = whole_number(value)
    number = exact_float(value) if isinstance(value, str) else value
    if not isinstance(number, int | float) or not math.isfinite(number):
        raise ValueError
    if kind is int and isinstance(number, float) and abs(number) >= 2**53:
        raise ValueError  # the file may have had other last digits
    changed: float = kind(number)
    if changed != number:
        raise ValueError
    return changed


def _value_problems(name: str, value: Any) -> list[str]:
    """Problems of the value of one setting: at most one sentence."""
    if value is None:
        return []
    allowed = CHOICES.get(name)
    if allowed is not None and value not in allowed:
        return [
            f"{name}: found {shortened(repr(value), 200)}, allowed: {', '.join(allowed)}.{nearest(str(value), allowed)}"
        ]
    if isinstance(value, str) and name != "chat_template" and (problem := _text_problem(value)):
        return [f"{name}: {problem}"]
    broken = [bound for bound in FIELDS[name].metadata["bounds"] if not bound.holds(value)]
    return [f"{name}: found {value}, allowed: {broken[0].words}"] if broken else []


def _text_problem(value: str) -> str:
    """Why no path, id or name can be like this, or ""."""
    if any(len(part) > LONGEST_NAME for part in value.split("/")) or len(value) > LONGEST_TEXT:
        return (
            f"found {shortened(value, 60)!r} of {len(value):,} characters; "
            f"allowed: {LONGEST_TEXT:,}, and {LONGEST_NAME} between slashes"
        )
    return name_problem(value)


def _conflicts(clean: Mapping[str, Any]) -> list[str]:
    """Settings that do not go together."""
    found = []
    if clean.get("method") == ORPO:
        found.append(f"method: orpo means objective orpo; found objective {clean.get('objective')!r}")
    if clean.get("fsdp") == "on" and clean.get("method", "qlora") not in ("full", ORPO):
        found.append(f"fsdp: found on, allowed with method {clean.get('method', 'qlora')}: auto, off")
    if clean.get("reasoning") and clean.get("objective", "answer") != "answer":
        found.append(f"objective: found {clean['objective']}, allowed with reasoning: answer, whose loss is on it, too")
    if clean.get("keep") == "last" and clean.get("early_stopping_patience") is not None:
        found.append(
            f"early_stopping_patience: found {clean['early_stopping_patience']}, allowed with keep last: none, since "
            "dev would choose when to stop"
        )
    return found


# What the table of backbones adds


def _named_backbone(recipe: Recipe) -> Recipe:
    """`recipe` with a short name for its model: the table's, or the last part of the model's id."""
    if recipe.backbone or not recipe.model_id:
        return recipe
    by_id = {facts.model_id: short for short, facts in backbones().items()}
    place = Path(recipe.model_id)
    own = (place.resolve() if is_folder(place) else place).name
    return recipe.replace(backbone=by_id.get(recipe.model_id, own))


def _completed(recipe: Recipe, facts: Backbone) -> Recipe:
    """`recipe` completed from the table. Another model under the backbone's name gets only its template."""
    if recipe.chat_template is None:
        recipe = recipe.replace(chat_template=facts.chat_template)
    if recipe.model_id not in ("", facts.model_id):
        return recipe
    return recipe.replace(
        model_id=facts.model_id,
        revision=recipe.revision or facts.revision,
        licence=recipe.licence or facts.licence,
    )
