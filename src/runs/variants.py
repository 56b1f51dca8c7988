"""Runs that are scored without a training of their own: the bare base model, an adapter of another tool on it, and a
trained run under another prompt.
"""

from dataclasses import asdict, replace
from pathlib import Path

from src.console.cli import UserError
from src.data import DATA
from src.files.paths import record_path, weights_folder
from src.model import hub, load
from src.model.foreign import ForeignAdapter
from src.model.recipes import Recipe, differing_settings
from src.prompt.prompts import load_prompt, parse_prompt
from src.runs.encoder import (
    find_library,
    frozen_of,
    make_encoder,
    prompt_facts,
    refuse_other_text,
    template_facts,
)
from src.runs.facts import digests_json
from src.runs.noted import weights_noted
from src.runs.record import Record
from src.runs.taken import adapter_facts, same_adapter, take_adapter, trained_in
from src.runs.training import new_record


def untrained_run(
    recipe: Recipe,
    folder: Path,
    device_name: str | None = None,
    data_folder: Path = DATA,
    adapter: ForeignAdapter | None = None,
) -> Record:
    """The record of the bare base model under a prompt: the zero-shot row of a table. With an adapter, of that on it;
    then the run's folder gets a copy of it. Nothing else is written yet.

    When `folder` has one of the same settings, its scored splits are kept. data_folder: where a prompt with examples
    finds the training split.
    """
    prompt = load_prompt(recipe.prompt)
    there = Record.load(folder) if record_path(folder).is_file() else None
    taken = adapter_facts(adapter) if adapter else None
    if taken and there and not same_adapter(there.adapter, taken):
        raise UserError(f"{folder} holds scores of another adapter. Delete it, or give another --name.")
    pinned = hub.pin(recipe, there.commits if there else None)
    frozen = frozen_of(there.template) if there else None
    library = find_library(prompt, data_folder, recipe.reasoning)
    device = load.pick_device(device_name)
    kept = take_adapter(adapter, taken, pinned, folder) if adapter and taken else None
    encoder = make_encoder(pinned, prompt, kept, library, frozen)
    record = replace(new_record(folder.name, recipe, pinned, encoder, data_folder, device), trainable_parameters=0)
    if kept is not None:
        trained, files = trained_in(kept), digests_json(weights_noted(folder))
        record = replace(record, adapter=taken, trainable_parameters=trained, files=files)
    if there is None:
        return record
    differing = differing_settings(there.settings or {}, recipe)
    differing += ["prompt"] if there.prompt.sha256 != record.prompt.sha256 else []
    differing += ["template"] if there.template.sha256 != record.template.sha256 else []
    if differing:
        raise UserError(
            f"{folder} holds scores under other settings ({', '.join(differing)}). Delete it, or give another --name."
        )
    refuse_other_text(folder, record.template, there.template)
    return record.with_results_of(there)


def rerun_with_prompt(
    folder: Path, record: Record, prompt_name: str | None, reasoning: bool | None, data_folder: Path, suffix: str
) -> tuple[Path, Record]:
    """(folder, record) of the trained run in `folder` under another prompt, or with or without reasoning, which it was
    not trained for: a run beside it, with the weights of the first. What it has been scored on is kept.
    """
    prompt = load_prompt(prompt_name) if prompt_name else parse_prompt(record.prompt.text, f"{folder}: prompt")
    reasons = record.recipe.reasoning if reasoning is None else reasoning
    recipe = record.recipe.replace(prompt=prompt_name or record.recipe.prompt, reasoning=reasons)
    weights = record.weights_in(folder)
    names = [weights.name, *([prompt.name] if prompt_name else []), *([suffix] if suffix else [])]
    there = folder.with_name("-".join(names))
    made = replace(
        record.without_results(),
        run=there.name,
        settings={**asdict(recipe), **record.unknown_settings},
        weights=weights.name,
    )
    library = find_library(prompt, data_folder, reasons)
    kept = weights_folder(weights)
    encoder = make_encoder(made.pinned_recipe, prompt, kept, library, frozen_of(record.template))
    made = replace(made, prompt=prompt_facts(encoder, data_folder), template=template_facts(encoder))
    if not record_path(there).is_file():
        return there, made
    earlier = Record.load(there)
    if earlier.prompt.sha256 != prompt.sha256:
        raise UserError(f"{there} holds scores under another text of prompt {prompt.name}. Delete it or rename it.")
    return there, made.with_results_of(earlier)
