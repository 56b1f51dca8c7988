"""A run from its recipe to its record: what `run.train`, `run.train_base` and `run.test` have in common."""

import dataclasses
import gc
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from src import data
from src.console import progress
from src.console.cli import UserError
from src.console.words import counted
from src.data import DATA, Item
from src.files import paths, writing
from src.files.paths import INPUTS, RECIPE, find_run, record_path
from src.model import hub
from src.model import load as models
from src.model.recipes import Recipe, backbones, differing_settings, load_recipe, make_recipe
from src.prompt.chat import Frozen
from src.prompt.encode import Encoder
from src.prompt.fewshot import Library
from src.prompt.prompts import ORDERS, Prompt, load_prompt, parse_prompt
from src.runs import record as records
from src.runs.inputs import gather, read_run
from src.runs.versions import made_with
from src.score import item_scores
from src.score.item_scores import ItemScores
from src.score.letters import announce, how_read, score
from src.score.reasoning import Chain, Sampling, reason, summary
from src.train.trainer import fine_tune
from src.worth.metrics import evaluate, wilson


def train_run(
    recipe: Recipe,
    folder: Path,
    data_folder: Path,
    device_name: str | None = None,
    also_score: Sequence[str] = (),
    limit: int | None = None,
) -> dict[str, Any]:
    """Trains `recipe` in `folder`, scores dev with the best weights as they lie on disk, and returns the record,
    written last.

    An unfinished run of the same recipe and data goes on where it stopped. `also_score`: further splits, labelled
    or not. `limit`: only so many items of each split.
    """
    started = time.monotonic()
    device = models.pick_device(device_name)
    if device.type == "cuda" and device.index:
        raise UserError(
            f"--device {device}: training takes the first GPU it sees; put CUDA_VISIBLE_DEVICES={device.index} in "
            "front of the command instead."
        )
    given = gather(recipe, folder, data_folder, also_score, limit)
    began = records.began_with(folder)
    pinned = hub.pin(recipe, began)
    models.check_trainable(pinned)
    library = find_library(given.prompt, data_folder, recipe.reasoning)
    before = began.get("template", {})
    frozen = frozen_of(before) if began else None
    encoder = make_encoder(pinned, given.prompt, library=library, frozen=frozen)
    for split in ("dev", *also_score):  # an item that does not fit is better known before the training
        encoder.for_scoring(given.splits[split][0])
    facts = _facts(pinned, encoder, data_folder)
    _refuse_other_text(folder, facts["template"], before)
    _print_notes(encoder, [items for items, _ in given.splits.values()])
    writing.write_json(folder / INPUTS, {**given.hashes, **hub.commits(pinned), "template": facts["template"]})
    writing.write_text(folder / RECIPE, recipe.dump())
    outcome = fine_tune(pinned, encoder, given.train, given.dev, folder, device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    record: dict[str, Any] = {
        "run": folder.name,
        "recipe": dataclasses.asdict(recipe),
        **facts,
        "data": {split: given.splits[split][1] for split in ("train", "dev")},
        "trainable_parameters": outcome.trainable_parameters,
        "parameters": outcome.parameters,
        "training": outcome.training,
        "device": device_words(device),
        "splits": {},
    }
    network = models.load_run(folder, pinned, device)
    for split in ("dev", *also_score):
        items, data_record = given.splits[split]
        score_run(folder, record, split, items, data_record, encoder, network)
        record |= {"peak_memory_bytes": _peak_memory(device), "seconds": time.monotonic() - started}
        writing.write_json(record_path(folder), record)
    return record


def untrained_run(
    recipe: Recipe, folder: Path, device_name: str | None = None, data_folder: Path = DATA
) -> dict[str, Any]:
    """The record of the bare base model under a prompt: the zero-shot row of a table. Nothing is written yet.

    When `folder` has one of the same settings, its scored splits are kept. data_folder: where a prompt with examples
    finds the training split.
    """
    prompt = load_prompt(recipe.prompt)
    there = records.read_record(folder) if record_path(folder).is_file() else None
    pinned = hub.pin(recipe, there)
    frozen = frozen_of(there["template"]) if there else None
    library = find_library(prompt, data_folder, recipe.reasoning)
    encoder = make_encoder(pinned, prompt, library=library, frozen=frozen)
    facts = _facts(pinned, encoder, data_folder)
    scored: dict[str, Any] = {"splits": {}}
    if there:
        differing = differing_settings(there["recipe"], recipe)
        differing += [key for key in ("prompt", "template") if there[key]["sha256"] != facts[key]["sha256"]]
        if differing:
            raise UserError(
                f"{folder} holds scores under other settings ({', '.join(differing)}). Delete it, or give another "
                "--name."
            )
        _refuse_other_text(folder, facts["template"], there["template"])
        scored = _scored(there)
    return {
        "run": folder.name,
        "recipe": dataclasses.asdict(recipe),
        **facts,
        "data": {},
        "trainable_parameters": 0,
        "parameters": None,
        "training": None,
        "device": device_words(models.pick_device(device_name)),
        **scored,
    }


def other_run(
    folder: Path,
    record: dict[str, Any],
    prompt_name: str | None,
    reasoning: bool | None,
    data_folder: Path,
    suffix: str,
) -> tuple[Path, dict[str, Any]]:
    """(folder, record) of the trained run in `folder` under another prompt, or with or without reasoning, which it was
    not trained for: a run beside it, with the weights of the first. What it has been scored on is kept.
    """
    prompt = load_prompt(prompt_name) if prompt_name else parse_prompt(record["prompt"]["text"], f"{folder}: prompt")
    recipe = Recipe(**record["recipe"])
    reasons = recipe.reasoning if reasoning is None else reasoning
    recipe = recipe.replace(prompt=prompt_name or recipe.prompt, reasoning=reasons)
    pinned = hub.recorded({**record, "recipe": dataclasses.asdict(recipe)})
    weights = weights_of(folder, record)
    words = [prompt.name] if prompt_name else []
    there = folder.with_name("-".join([weights.name, *words, *([suffix] if suffix else [])]))
    library = find_library(prompt, data_folder, reasons)
    frozen = frozen_of(record["template"])
    encoder = make_encoder(pinned, prompt, models.weights_folder(weights), library, frozen)
    made = {key: value for key, value in record.items() if key not in _scored(record)}
    made |= {"run": there.name, "recipe": dataclasses.asdict(recipe), "weights": weights.name, "splits": {}}
    facts = _facts(pinned, encoder, data_folder)
    made |= {"prompt": facts["prompt"], "template": facts["template"]}
    if record_path(there).is_file():
        earlier = records.read_record(there)
        if earlier["prompt"]["sha256"] != prompt.sha256:
            raise UserError(f"{there} holds scores under another text of prompt {prompt.name}. Delete it or rename it.")
        made |= _scored(earlier)
    return there, made


def _scored(record: dict[str, Any]) -> dict[str, Any]:
    """What a record says of scored splits, by one order of the options and by more."""
    return {key: record[key] for key in map(records.results_key, range(1, len(ORDERS) + 1)) if key in record}


def weights_of(folder: Path, record: dict[str, Any]) -> Path:
    """Where the weights of the run in `folder` lie: there, or, under another prompt, in that of the run beside it."""
    return folder.with_name(record["weights"]) if "weights" in record else folder


def open_run(
    folder: Path,
    record: dict[str, Any],
    splits: Sequence[Sequence[Item]],
    device: torch.device,
    orders: Sequence[str] = ORDERS[:1],
    data_folder: Path = DATA,
) -> tuple[Encoder, Any]:
    """Encoder and model of a run, the model loaded once it is sure that the items of `splits` can be scored."""
    encoder = encoder_of(folder, record, data_folder)
    found = [encoder.for_scoring(items, orders) for items in splits]
    _refuse_changed(folder, record, encoder)
    _print_notes(encoder, splits)
    announce(found, device)
    weights, trained = weights_of(folder, record), record["training"] is not None
    return encoder, models.load_run(weights, hub.recorded(record), device, trained=trained)


def score_run(
    folder: Path,
    record: dict[str, Any],
    split: str,
    items: Sequence[Item],
    data_record: dict[str, Any],
    encoder: Encoder,
    network: Any,
    orders: Sequence[str] = ORDERS[:1],
    sampling: Sampling | None = None,
) -> list[ItemScores]:
    """Scores `items` with the run in `folder`, writes scores and predictions, and notes the result in `record` (not
    written here). With `sampling` reasoning is generated first, and written too. Several `orders` have files and
    results of their own, beside those of one.
    """
    started = time.monotonic()
    examples = encoder.for_scoring(items, orders)
    assert encoder.letter_ids is not None
    chains: list[Chain] = []
    if sampling is not None:
        assert encoder.reasoning
        with progress.stage(f"reason {split}", len(examples) * sampling.samples) as bar:
            rows, chains = reason(network, encoder, items, orders, sampling, bar.update)
        writing.write_jsonl(paths.reasoning_path(folder, split, len(orders)), map(dataclasses.asdict, chains))
    else:
        with progress.stage(f"score {split}", len(examples)) as bar:
            share = Recipe(**record["recipe"]).share_prefixes
            rows = score(network, examples, encoder.letter_ids, encoder.pad_id, update=bar.update, share=share)
    answers = [row.prediction for row in rows]
    _make_way(folder, record, split, len(orders))
    item_scores.write_scores(paths.scores_path(folder, split, len(orders)), rows)
    predicted = data.dump_items(data.predictions(items, answers))
    writing.write_text(paths.predictions_path(folder, split, len(orders)), predicted)
    result = {
        "items": len(items),
        "orders": len(orders),
        "seconds": time.monotonic() - started,
        "data": data_record["path"],
        "data_sha256": data_record["sha256"],
        "rows": how_read(network),
    }
    if all(item.label is not None for item in items):
        evaluation = evaluate(items, answers)
        result |= {"accuracy": evaluation.accuracy, "correct": evaluation.correct, "interval": evaluation.interval}
    else:
        result |= {"accuracy": None, "correct": None, "interval": None}
    if sampling is not None:
        result["reasoning"] = summary(chains, rows, sampling)
    record.setdefault(records.results_key(len(orders)), {})[split] = result
    record["letters"] = dict(zip("ABC", encoder.letter_ids, strict=True))
    return rows


def _make_way(folder: Path, record: dict[str, Any], split: str, orders: int) -> None:
    """Runs of before kept scores of several orders in the place of one order's: such ones move to their own."""
    there = record["splits"].get(split, {})
    before = there.get("orders", 1)
    if orders > 1 or before == 1:
        return
    for path in (paths.scores_path, paths.predictions_path, paths.reasoning_path):
        if path(folder, split).is_file():
            path(folder, split).replace(path(folder, split, before))
    record.setdefault(records.results_key(before), {})[split] = record["splits"].pop(split)


def named_model(name: str) -> tuple[str, Recipe, Path | None]:
    """(name, recipe, folder) of what can be scored: a trained run by name or folder, else, and without a folder, an
    untrained model by its recipe's file, a backbone's short name, a hub id or its own folder.
    """
    folder = find_run(name)
    if folder is not None:
        record = read_run(folder)
        trained = weights_of(folder, record) if record["training"] is not None else None
        return folder.name, hub.recorded(record), trained
    if name.endswith((".yaml", ".yml")):
        recipe = load_recipe(name)
    else:
        recipe = make_recipe({"backbone" if name in backbones() else "model_id": name, "method": "lora"}, name)
    return f"{recipe.name} (untrained)", hub.pin(recipe), None


def make_encoder(
    recipe: Recipe,
    prompt: Prompt,
    folder: Path | None = None,
    library: Library | None = None,
    frozen: Frozen | None = None,
) -> Encoder:
    """The encoder of a recipe; with the tokenizer and the config kept in `folder` when a run has them, and with what
    a run has `frozen` of rendering.
    """
    config = models.load_config(recipe, folder)
    return Encoder(
        models.load_tokenizer(recipe, folder),
        prompt,
        name=recipe.backbone,
        chat_template=recipe.chat_template,
        override=recipe.overrides_template,
        system_turn=recipe.system_turn,
        context=models.context_length(config),
        vocab=getattr(config.get_text_config(), "vocab_size", None),
        library=library,
        reasoning=recipe.reasoning,
        frozen=frozen,
    )


def frozen_of(template: Mapping[str, Any]) -> Frozen:
    """What a record's or an unfinished run's `template` keeps of rendering."""
    return Frozen(template.get("source"), template.get("date"), template.get("arguments", {}))


def encoder_of(folder: Path, record: dict[str, Any], data_folder: Path = DATA) -> Encoder:
    """The encoder that a finished run was trained with: prompt and template come from its record, examples from the
    same training split.
    """
    prompt = parse_prompt(record["prompt"]["text"], f"{record_path(folder)}: prompt")
    recipe = hub.recorded(record)
    library = find_library(prompt, data_folder, recipe.reasoning)
    if library and (now := data.sha256(data.split_path(data_folder, "train"))) != record["prompt"]["examples_sha256"]:
        raise UserError(
            f"{folder} takes its prompt's examples from another {data.split_path(data_folder, 'train')}: sha256 "
            f"{record['prompt']['examples_sha256'][:12]} then, {now[:12]} now. Give the folder of the first as --data."
        )
    frozen = frozen_of(record["template"])
    return make_encoder(recipe, prompt, models.weights_folder(weights_of(folder, record)), library, frozen)


def frozen_in(folder: Path | None) -> Frozen | None:
    """What the finished run in `folder` keeps of rendering; None for a folder without record, or for none."""
    if folder is None or not record_path(folder).is_file():
        return None
    return frozen_of(records.read_record(folder)["template"])


def find_library(prompt: Prompt, data_folder: Path, reasoning: bool = False) -> Library | None:
    """The examples of a prompt that has some: all of the training split in `data_folder`."""
    if prompt.examples is None:
        return None
    return Library(data.load_split(data_folder, "train", labelled=True), prompt.examples, reasoning)


def compare_merged(encoder: Encoder, network: Any, items: Sequence[Item]) -> tuple[Any, int, float]:
    """(merged model, answers that differ, largest difference of log-probabilities) of a run's adapter merged into
    its base. `network` is used up.
    """
    examples = encoder.for_scoring(items)
    assert encoder.letter_ids is not None
    before = score(network, examples, encoder.letter_ids, encoder.pad_id)
    network = models.merged(network)
    after = score(network, examples, encoder.letter_ids, encoder.pad_id)
    changed = sum(one.prediction != other.prediction for one, other in zip(before, after, strict=True))
    gap = max(
        abs(a - b)
        for one, other in zip(before, after, strict=True)
        for a, b in zip(one.logprobs, other.logprobs, strict=True)
    )
    return network, changed, gap


def result_line(name: str, split: str, result: dict[str, Any]) -> str:
    """One line of a scored split for the terminal."""
    many = f"{counted(result['items'], 'item')}, {counted(result['orders'], 'order')}"
    head = f"{name}, {split}: {many}, {result['seconds']:.1f} s"
    if result["accuracy"] is None:
        return f"{head}; no labels, so no accuracy"
    low, high = wilson(result["correct"], result["items"])
    interval = f"95 % interval {low:.3f} to {high:.3f}"
    return f"{head}; accuracy {result['accuracy']:.4f} ({result['correct']}/{result['items']}, {interval})"


def device_words(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _facts(recipe: Recipe, encoder: Encoder, data_folder: Path) -> dict[str, Any]:
    prompt = encoder.prompt
    shown = {"examples_sha256": data.sha256(data.split_path(data_folder, "train"))} if prompt.examples else {}
    return {
        "prompt": {"name": prompt.name, "sha256": prompt.sha256, "text": prompt.text, **shown},
        "template": _template_record(encoder),
        **hub.commits(recipe),
        **made_with(),
    }


def _template_record(encoder: Encoder) -> dict[str, Any]:
    text, ids = encoder.rendered_sha256
    return {
        "source": encoder.template_source,
        "system_turn": encoder.system_turn,
        "sha256": encoder.template_sha256,
        "date": encoder.chat.date,
        "arguments": encoder.chat.arguments,
        "text_sha256": text,
        "ids_sha256": ids,
    }


def _refuse_changed(folder: Path, record: dict[str, Any], encoder: Encoder) -> None:
    """A run is scored at the tokens it was trained at, or not at all."""
    letters = dict(zip("ABC", encoder.letter_ids or (), strict=True))
    _refuse_other(folder, "the letters' token ids", letters, record.get("letters") or letters)
    _refuse_other_text(folder, _template_record(encoder), record["template"])


def _refuse_other_text(folder: Path, now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """UserError when a run renders other text, or reads it as other tokens, than it did. Both as `_template_record`
    gives them; older runs kept less.
    """
    for what, key in (
        ("the chat template", "sha256"),
        ("the handling of the system turn", "system_turn"),
        ("the text that prompt and chat template make", "text_sha256"),
        ("the token ids of that text", "ids_sha256"),
    ):
        _refuse_other(folder, what, now[key], then.get(key, now[key]))


def _refuse_other(folder: Path, what: str, now: Any, then: Any) -> None:
    if now != then:
        raise UserError(
            f"{folder}: {what} changed since the run was made: {then} then, {now} now. Use the versions in its record."
        )


def _print_notes(encoder: Encoder, splits: Sequence[Sequence[Item]]) -> None:
    for line in encoder.notes([item for items in splits for item in items]):
        print(f"{encoder.name}: {line}")


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
