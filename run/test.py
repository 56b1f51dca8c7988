"""Score a split with one run: three letter logits per item, and predictions in the submission's form.

    python -m run.test --model_id resource/results/polar
    python -m run.test --model_id polar --split dev test --orders 6
    python -m run.test --model_id Qwen/Qwen2-7B-Instruct --method lora --split dev
    python -m run.test --model_id Qwen/Qwen2-7B-Instruct --prompt korean+cot --reasoning --samples 8 --split dev
    python -m run.test --model_id out/my-lora --prompt korean --split dev
    python -m run.test --model_id polar --other_prompt korean+cot --split dev
    python -m run.test --model_id polar --split dev --dialogue blanked shuffled swapped

The first two take a trained run with the prompt and template of its record; the next ones an untrained model from
the hub or a folder (the zero-shot row), which becomes a run NAME-untrained. Writes scores_SPLIT.jsonl and
predictions_SPLIT.json into the run's folder.

A LoRA adapter that another tool left (TRL, LLaMA-Factory, axolotl, unsloth), a folder or a hub id with
adapter_config.json, becomes a run NAME-adapter with a copy of it; vote with it by that name. Its base is the one that
its config names, or --base. Its tokenizer and chat template are those in its folder, else the base's.

With --reasoning the model writes its reasoning first, and the letters are read after it; the letters' probabilities of
several sampled chains are averaged (self-consistency). The chains are in reasoning_SPLIT.jsonl. A trained run that is
scored with reasoning or with a prompt it was not trained for becomes a run beside it, by a name that says so.

With --dialogue the run answers items whose dialogues are changed: `blanked` leaves speakers without words, `shuffled`
puts the utterances in random order, `swapped` has another dialogue of the split, with target utterances of its own, in
the dialogue's place. What is still right does not come from the dialogue. Each change becomes a run beside the first
(polar-blanked), which never votes; python -m run.evaluate polar shows it next to the floors, with a test.

Several GPUs share the items: torchrun --nproc_per_node 2 -m run.test --model_id polar --orders 6
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src import task
from src.console.cli import Parser, UserError, announced, new_file, new_folder, run_main
from src.data import DATA, SPLITS, Item, dump_items, oddity_note, predictions
from src.files.locks import Held
from src.files.paths import ADAPTER, RESULTS, find_run, record_path, scores_path
from src.files.writing import write_text
from src.items.changes import CHANGES, change_dialogues
from src.model import foreign, hub, ranks, trust
from src.model.recipe_flags import add_flags, add_recipe_flag, read_recipe
from src.model.recipes import FIELDS, Recipe
from src.prompt.prompts import load_prompt
from src.runs.changed import changed_runs, changed_split
from src.runs.facts import DataFile
from src.runs.inputs import (
    Split,
    changed_note,
    check_limit,
    load_own,
    named_data,
    read_run,
    refuse_bare_name,
    sample_items,
)
from src.runs.record import Record

if TYPE_CHECKING:
    from src.runs.scoring import OpenRun
    from src.score.reasoning import Sampling

UNTRAINED = (
    *("backbone", "name", "tokenizer", "revision", "licence", "trust_remote_code", "chat_template", "system_turn"),
    *("method", "prompt", "share_prefixes", "seed"),
)
"""Settings of a recipe that scoring an untrained model asks for; the others are those of training."""


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.test")
    parser.add_argument(
        "--model_id",
        metavar="RUN_OR_MODEL",
        help="a run by name or folder, or an untrained model or an adapter: hub id or folder",
    )
    parser.add_argument("--split", nargs="+", default=["test"], choices=SPLITS, help="splits to score (default: test)")
    own = f"folder of data_SPLIT.json, or one such file (default: what the run's record names, else {DATA})"
    parser.add_argument("--data", type=Path, help=own)
    parser.add_argument("--output", type=new_file, metavar="FILE", help="also write the predictions here")
    parser.add_argument("--device", metavar="X", help="cpu, cuda or cuda:N (default: the GPU when there is one)")
    orders = "orders of the options to average over: 1, all, or a multiple of their number (default: 1)"
    parser.add_argument("--orders", type=int, default=1, metavar="N", help=orders)
    parser.add_argument(
        "--other_prompt", metavar="NAME", help="score a trained run with a prompt that it was not trained with"
    )
    parser.add_argument(
        "--dialogue", nargs="+", choices=CHANGES, default=[], help="score on changed dialogues: what are they worth?"
    )
    parser.add_argument(
        "--merge",
        type=new_folder,
        metavar="DIR",
        help="also save the adapter merged into its base there, after comparing answers",
    )
    chains = parser.add_argument_group("reasoning")
    add_flags(chains, ("reasoning",))
    chains.add_argument("--samples", type=int, metavar="N", help="chains of reasoning for each prompt (default: 1)")
    chains.add_argument(
        "--temperature", type=float, metavar="X", help="of sampled chains (default: 0 for one chain, 0.7 for several)"
    )
    chains.add_argument("--top_p", type=float, metavar="X", help="sample from the likeliest tokens of this share (1.0)")
    chains.add_argument("--max_new_tokens", type=int, metavar="N", help="longest chain in tokens (default: 256)")
    chains.add_argument("--sampling_seed", type=int, metavar="N", help="of the chains (default: the recipe's seed)")
    words = "or an adapter of another tool; a trained run has all this in its record"
    untrained = parser.add_argument_group("an untrained model", words)
    untrained.add_argument("--base", metavar="MODEL", help="an adapter's base (default: what its config names)")
    add_recipe_flag(untrained)
    add_flags(untrained, UNTRAINED)
    untrained.add_argument("--limit", type=int, metavar="N", help="only N items, to try it out")
    training = [name for name in FIELDS if name not in ("model_id", "reasoning", *UNTRAINED)]
    parser.elsewhere = {f"--{name}": " It is a setting of training: python -m run.train." for name in training}
    task.add_flag(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    orders = task.current().orders(arguments.orders)
    folder = find_run(arguments.model_id)
    recipe = None if folder else read_recipe(arguments, method="lora")
    check(arguments, folder, recipe)
    adapter = None if folder else foreign.find_adapter(arguments.model_id, arguments.revision)
    if adapter:
        recipe = read_recipe(foreign.with_base(arguments, adapter), method="lora")
    elif arguments.base:
        raise UserError(f"--base goes with an adapter of another tool; {arguments.model_id} is none.")
    own = folder or (RESULTS / f"{recipe.name}-{'adapter' if adapter else 'untrained'}" if recipe else Path())
    found = {split: load_own(arguments.data, split, [own]) for split in arguments.split}
    examples = examples_folder(arguments, own, next(path for _, path, _ in found.values()))
    for _, path, _ in found.values():
        if note := oddity_note(path):
            print(note)
    for items, _, _ in found.values():
        for how in arguments.dialogue:
            change_dialogues(items, how)  # refused here where it cannot be done
    if adapter and recipe:
        print("\n".join(foreign.base_words(adapter, recipe.model_id)))
    if recipe is not None:
        hub.check_there(recipe, Record.load(own).commits if record_path(own).is_file() else None)

    with announced("loading torch and transformers"):
        from src.model.load import pick_device
        from src.runs.scoring import open_run

    device = pick_device(arguments.device)
    ranks.begin(device)
    folder, record, sampling = pick_run(arguments, folder or own, recipe, examples, adapter)
    if ranks.several() and sampling:
        raise UserError("reasoning is the work of one process; start it without torchrun.")
    if arguments.merge and not (folder / ADAPTER).is_dir():
        raise UserError(f"--merge: {folder} has no adapter; its method is {record.recipe.method}.")
    splits = []
    for name, (items, path, _) in found.items():
        kept = sample_items(items, arguments.limit, record.recipe.seed)
        splits.append(Split(name, kept, DataFile.of(path, kept)))
    runs = changed_runs(folder, record, arguments.dialogue)
    asked = [[changed_split(split, its.dialogue) for split in splits] for _, its in runs]
    run = None
    for (place, its), own_splits in zip(runs, asked, strict=True):
        with ranks.at_work(place) as held:
            its = its.refreshed(place)  # another process may have added results since the record was read
            if run is None:
                every = [split.items for some in asked for split in some]
                run = open_run(place, its, every, device, orders, examples)
            else:
                run = replace(run, folder=place, record=replace(its, base_files=run.record.base_files))
            for split in own_splits:
                notes = [*found[split.name][2], *([] if arguments.data else notes_on_own(own, split))]
                for note in [*notes, *notes_on_replaced(run, split, len(orders))]:
                    print(f"{split.name}: {note}")
                run = score(run, split, orders, sampling, held, arguments.output)
    assert run is not None
    if arguments.merge:
        save_merged(run, splits[-1].items, arguments.merge)
    print(ending(arguments, folder, [place for place, _ in runs]))


def score(
    run: "OpenRun",
    split: Split,
    orders: Sequence[str],
    sampling: "Sampling | None",
    held: Held,
    output: Path | None,
) -> "OpenRun":
    """Scores a split, writes what comes out and says it; gives the run with its result."""
    from src.runs.scoring import result_line, score_run

    held.refuse_gone()
    record, scores = score_run(run, split, orders, sampling)
    held.refuse_gone()
    if ranks.is_first():
        record.save(run.folder)
    print(result_line(record.run, split.name, record.results(len(orders))[split.name]))
    if output and ranks.is_first():
        write_text(output, dump_items(predictions(split.items, [one.prediction for one in scores])))
    return replace(run, record=record)


def ending(arguments: argparse.Namespace, folder: Path, places: Sequence[Path]) -> str:
    """Where everything lies, and what to do next. folder: of the run that was asked for; places: where scores went."""
    flag = f" --orders {arguments.orders}" if arguments.orders > 1 else ""
    where = f"Scores and predictions lie in {', '.join(map(str, places))}."
    if not arguments.dialogue:
        return f"{where} Vote: python -m run.vote{flag}{task.flag()}"
    split = f" --split {arguments.split[0]}" if arguments.split[0] != "dev" else ""
    data = f" --data {shlex.quote(str(arguments.data))}" if arguments.data else ""
    run = shlex.quote(folder.name if folder.resolve().parent == RESULTS.resolve() else str(folder))
    there = scores_path(folder, arguments.split[0], arguments.orders).is_file()
    scored = "" if there else ", when it is scored, too"
    return f"{where} Compare with the run itself{scored}: python -m run.evaluate {run}{split}{data}{flag}{task.flag()}"


def check(arguments: argparse.Namespace, folder: Path | None, recipe: Recipe | None) -> None:
    """UserError for mistakes that can be seen before torch is imported. folder: of a trained run, else None."""
    if ranks.several() and arguments.merge:
        raise UserError("--merge is the work of one process; start it without torchrun.")
    if folder:
        refuse_settings(arguments, folder)
        refuse_changing(arguments, read_run(folder))
    elif arguments.other_prompt:
        raise UserError(
            f"--other_prompt goes with a trained run; for an untrained model: --prompt {arguments.other_prompt}"
        )
    if recipe:
        refuse_bare_name(recipe.model_id)
        load_prompt(recipe.prompt)
    if arguments.other_prompt:
        load_prompt(arguments.other_prompt)
    file = arguments.data is not None and arguments.data.suffix == ".json"
    if len(arguments.split) > 1 and (arguments.output or file):
        raise UserError("--output and a --data file go with one --split; found " + ", ".join(arguments.split) + ".")
    if arguments.dialogue and (arguments.output or arguments.merge):
        raise UserError("--output and --merge are of a run's own answers; leave out --dialogue, or them.")
    check_limit(arguments.limit)
    if arguments.merge and arguments.merge.exists():
        raise UserError(f"--merge: {arguments.merge} exists already; give a new folder.")


def examples_folder(arguments: argparse.Namespace, own: Path, path: Path) -> Path:
    """Where a prompt with examples finds the training split. path: of the items that are scored."""
    if arguments.data is not None:
        return arguments.data if arguments.data.is_dir() else arguments.data.parent
    named = named_data(own, "train")
    return named[0].parent if named and named[0].is_file() else path.parent


def pick_run(
    arguments: argparse.Namespace,
    folder: Path,
    recipe: Recipe | None,
    examples: Path,
    adapter: foreign.ForeignAdapter | None = None,
) -> tuple[Path, Record, "Sampling | None"]:
    """(folder, record, how chains are generated) of the run that is scored: an untrained model's or adapter's, a
    trained one, or one beside that for another prompt or for reasoning. folder: of the run without reasoning.
    """
    from src.runs.variants import rerun_with_prompt, untrained_run

    if recipe is not None:
        sampling = find_sampling(arguments, recipe.reasoning, recipe.seed)
        folder = folder.with_name("-".join([folder.name, *([suffix(sampling)] if sampling else [])]))
        return folder, untrained_run(recipe, folder, arguments.device, examples, adapter), sampling
    record = read_run(folder)
    trained_on = record.recipe.reasoning
    reasons = trained_on if arguments.reasoning is None else arguments.reasoning
    sampling = find_sampling(arguments, reasons, record.recipe.seed)
    if arguments.other_prompt or reasons != trained_on:
        word = suffix(sampling) if sampling else "at-once" if trained_on else ""
        folder, record = rerun_with_prompt(folder, record, arguments.other_prompt, reasons, examples, word)
    return folder, record, sampling


def notes_on_own(own: Path, split: Split) -> list[str]:
    """Notes on data that the user did not name. own: the run whose record may name it."""
    path = Path(split.file.path or "")
    notes = [] if path.parent == DATA else [f"the items are those of {path}"]
    return notes + list(filter(None, [changed_note(own, split.name, path)]))


def notes_on_replaced(run: "OpenRun", split: Split, orders: int) -> list[str]:
    before = run.record.results(orders).get(split.name)
    if before is None or before.data_sha256 in (None, split.file.sha256):
        return []
    return [f"the scores of {before.items} items of another file in {run.folder} are replaced"]


def save_merged(run: "OpenRun", items: Sequence[Item], folder: Path) -> None:
    """Saves the adapter merged into its base, with all files that the merged model needs."""
    from src.runs.merging import compare_merged

    merged, changed, gap = compare_merged(run.encoder, run.scorer, items)
    print(f"merged: {changed} of {len(items)} answers changed, log-probabilities by at most {gap:.4f}")
    merged.save_pretrained(folder)
    run.encoder.tokenizer.chat_template = run.encoder.chat.dated_template
    run.encoder.tokenizer.save_pretrained(folder)


def find_sampling(arguments: argparse.Namespace, reasons: bool, seed: int) -> "Sampling | None":
    """The sampling settings of the chains; None without reasoning."""
    names = ("samples", "temperature", "top_p", "max_new_tokens")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if not reasons:
        if given:
            raise UserError(f"{', '.join(f'--{name}' for name in given)}: of use with --reasoning only.")
        return None

    from src.score.reasoning import Sampling

    if given.get("samples", 1) > 1:
        given = {"temperature": 0.7, **given}
    return Sampling(**given, seed=seed if arguments.sampling_seed is None else arguments.sampling_seed)


def suffix(sampling: "Sampling") -> str:
    """The end of the name of a run with reasoning."""
    return "reasoning" + (f"{sampling.samples}" if sampling.samples > 1 else "")


def refuse_changing(arguments: argparse.Namespace, record: Record) -> None:
    """UserError where the run with the `record` has changed dialogues already, and is asked to become another."""
    asked = {"dialogue": arguments.dialogue, "other_prompt": arguments.other_prompt}
    given = [f"--{name}" for name, value in asked.items() if value]
    given += ["--reasoning"] if arguments.reasoning not in (None, record.recipe.reasoning) else []
    if record.dialogue and given:
        raise UserError(
            f"{record.run} is a run on dialogues that are {record.dialogue}; {', '.join(given)} is for the run itself, "
            f"{record.run.removesuffix('-' + record.dialogue)}."
        )


def refuse_settings(arguments: argparse.Namespace, folder: Path) -> None:
    """UserError for settings of a trained run, which is scored with the prompt, template and base of its record."""
    fixed = [name for name in (*FIELDS, "recipe", "limit") if name not in ("model_id", "reasoning", trust.NAME)]
    given = [name for name in fixed if getattr(arguments, name, None) is not None]
    if given:
        names = ", ".join(f"--{name}" for name in given)
        raise UserError(
            f"{folder} is a trained run and is scored whole, with the settings in its record; leave out {names}."
            + (
                f" Under a prompt it was not trained with: --other_prompt {arguments.prompt}"
                if arguments.prompt
                else ""
            )
        )


if __name__ == "__main__":
    sys.exit(run_main(main, ranks=True))
