"""The encoder of a run, made from its recipe or from its record, and checked against what the record says."""

from pathlib import Path
from typing import Any

from src import data, task
from src.console.cli import UserError
from src.data import DATA
from src.files.paths import record_path, weights_folder
from src.model import load
from src.model.recipes import Recipe
from src.prompt.chat import Frozen, Rendering
from src.prompt.encode import Encoder, Limits
from src.prompt.fewshot import Library
from src.prompt.prompts import Prompt, parse_prompt
from src.runs.facts import PromptFacts, TemplateFacts
from src.runs.inputs import HASH_SHOWN
from src.runs.record import Record


def make_encoder(
    recipe: Recipe,
    prompt: Prompt,
    folder: Path | None = None,
    library: Library | None = None,
    frozen: Frozen | None = None,
) -> Encoder:
    """The encoder of a recipe. folder: of a run's weights, whose tokenizer and config are used where it has them.
    frozen: what the run keeps of rendering.
    """
    config = load.load_config(recipe, folder)
    rendering = Rendering(
        recipe.chat_template, recipe.overrides_template, recipe.system_turn, reasoning=recipe.reasoning, frozen=frozen
    )
    limits = Limits(load.context_length(config), getattr(config.get_text_config(), "vocab_size", None))
    return Encoder(load.load_tokenizer(recipe, folder), prompt, recipe.backbone, rendering, limits, library)


def encoder_of(folder: Path, record: Record, data_folder: Path = DATA) -> Encoder:
    """The encoder that a finished run was trained with: prompt and template come from its record, examples from the
    same training split.
    """
    prompt = parse_prompt(record.prompt.text, f"{record_path(folder)}: prompt")
    recipe = record.pinned_recipe
    library = library_of(folder, record, prompt, data_folder)
    kept = weights_folder(record.weights_in(folder))
    return make_encoder(recipe, prompt, kept, library, frozen_of(record.template))


def library_of(folder: Path, record: Record, prompt: Prompt, data_folder: Path) -> Library | None:
    """`find_library` for the finished run in `folder`. UserError where the training split is not the one it had."""
    library = find_library(prompt, data_folder, record.recipe.reasoning)
    then, train = record.prompt.examples_sha256 or "none", data.split_path(data_folder, "train")
    if library and (now := data.sha256(train)) != then:
        raise UserError(
            f"{folder} takes its prompt's examples from another {train}: "
            f"sha256 {then[:HASH_SHOWN]} then, {now[:HASH_SHOWN]} now. Give the folder of the first as --data."
        )
    return library


def find_library(prompt: Prompt, data_folder: Path, reasoning: bool = False) -> Library | None:
    """The examples of a prompt that has some: all of the training split in `data_folder`."""
    if prompt.examples is None:
        return None
    return Library(data.load_split(data_folder, "train", labelled=True), prompt.examples, reasoning)


def frozen_of(template: TemplateFacts) -> Frozen:
    """The rendering settings in the `template` of a record or of an unfinished run."""
    return Frozen(template.source, template.date, dict(template.arguments))


def frozen_in(folder: Path | None) -> Frozen | None:
    """The rendering settings of the finished run in `folder`; None for a folder without record, or for no folder."""
    if folder is None or not record_path(folder).is_file():
        return None
    return frozen_of(Record.load(folder).template)


def prompt_facts(encoder: Encoder, data_folder: Path) -> PromptFacts:
    """The record's entry on the prompt. data_folder: of the training split, where its examples are from."""
    prompt = encoder.prompt
    examples = data.sha256(data.split_path(data_folder, "train")) if prompt.examples else None
    return PromptFacts(name=prompt.name, sha256=prompt.sha256, text=prompt.text, examples_sha256=examples)


def template_facts(encoder: Encoder) -> TemplateFacts:
    text_sha256, ids_sha256 = encoder.rendered_sha256
    return TemplateFacts(
        source=encoder.template_source,
        system_turn=encoder.system_turn,
        sha256=encoder.template_sha256,
        date=encoder.chat.date,
        arguments=encoder.chat.arguments,
        text_sha256=text_sha256,
        ids_sha256=ids_sha256,
    )


def letters_of(encoder: Encoder) -> dict[str, int]:
    """Letter → its token id."""
    return dict(zip(task.current().letters, encoder.letter_ids or (), strict=True))


def refuse_changed(folder: Path, record: Record, encoder: Encoder) -> None:
    """UserError when the letters have other token ids than when the run was trained."""
    letters = letters_of(encoder)
    _refuse_other(folder, "the letters' token ids", letters, record.letters or letters)
    refuse_other_text(folder, template_facts(encoder), record.template)


def refuse_other_text(folder: Path, now: TemplateFacts, then: TemplateFacts) -> None:
    """UserError when a run renders other text, or reads it as other tokens, than it did. Older runs kept less of it."""
    for what, key in (
        ("the chat template", "sha256"),
        ("the handling of the system turn", "system_turn"),
        ("the text that prompt and chat template make", "text_sha256"),
        ("the token ids of that text", "ids_sha256"),
    ):
        _refuse_other(folder, what, getattr(now, key), getattr(then, key) or getattr(now, key))


def _refuse_other(folder: Path, what: str, now: Any, then: Any) -> None:
    if now != then:
        raise UserError(
            f"{folder}: {what} changed since the run was made: {then} then, {now} now. Use the versions in its record."
        )
