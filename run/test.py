"""Score a split with one run: three letter logits per item, and predictions in the submission's form.

    python -m run.test --model_id resource/results/polar
    python -m run.test --model_id polar --split dev test --orders 6
    python -m run.test --model_id Qwen/Qwen2-7B-Instruct --method lora --split dev
    python -m run.test --model_id Qwen/Qwen2-7B-Instruct --prompt korean+cot --reasoning --samples 8 --split dev
    python -m run.test --model_id polar --other_prompt korean+cot --split dev

The first two take a trained run with the prompt and template of its record; the next ones an untrained model from
the hub or a folder (the zero-shot row), which becomes a run NAME-untrained. Writes scores_SPLIT.jsonl and
predictions_SPLIT.json into the run's folder.

With --reasoning the model writes its grounds first, and the letters are read behind them; of several sampled chains
the letters' probabilities are averaged (self-consistency). The chains are in reasoning_SPLIT.jsonl. A trained run that
is scored with reasoning or with a prompt it was not trained for becomes a run beside it, by a name that says so.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src.console.cli import Parser, UserError, announced, new_file, new_folder, run_main
from src.data import DATA, SPLITS, dump_items, oddity_note, predictions
from src.files.paths import ADAPTER, RESULTS, find_run, record_path
from src.files.writing import write_json, write_text
from src.model import hub
from src.model.recipes import FIELDS, Recipe, add_flags, add_recipe_flag, read_recipe
from src.prompt.prompts import ORDERS, load_prompt
from src.runs.inputs import changed_note, data_record, load_own, named_data, read_run, refuse_bare_name, sample_items
from src.runs.record import read_record, results_key

UNTRAINED = (
    *("backbone", "name", "tokenizer", "revision", "licence", "trust_remote_code", "chat_template", "system_turn"),
    *("method", "prompt", "share_prefixes", "seed"),
)
"""Settings of a recipe that scoring an untrained model asks for; the others are those of training."""


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.test")
    parser.add_argument(
        "--model_id", metavar="RUN_OR_MODEL", help="a run by name or folder, or an untrained model: hub id or folder"
    )
    parser.add_argument("--split", nargs="+", default=["test"], choices=SPLITS, help="splits to score (default: test)")
    own = f"folder of data_SPLIT.json, or one such file (default: what the run's record names, else {DATA})"
    parser.add_argument("--data", type=Path, help=own)
    parser.add_argument("--output", type=new_file, metavar="FILE", help="also write the predictions here")
    parser.add_argument("--device", metavar="X", help="cpu, cuda or cuda:N (default: the GPU when there is one)")
    parser.add_argument(
        "--orders",
        type=int,
        default=1,
        choices=(1, 6),
        help="orders of the options to average over; the scores of six lie beside those of one (default: 1)",
    )
    parser.add_argument(
        "--other_prompt", metavar="NAME", help="score a trained run with a prompt that it was not trained with"
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
    untrained = parser.add_argument_group("an untrained model", "a trained run has all this in its record")
    add_recipe_flag(untrained)
    add_flags(untrained, UNTRAINED)
    untrained.add_argument("--limit", type=int, metavar="N", help="only N items, to try it out")
    training = [name for name in FIELDS if name not in ("model_id", "reasoning", *UNTRAINED)]
    parser.elsewhere = {f"--{name}": " It is a setting of training: python -m run.train." for name in training}
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    folder = find_run(arguments.model_id)
    recipe = None if folder else read_recipe(arguments, method="lora")
    check(arguments, folder, recipe)
    own = folder if folder else RESULTS / f"{recipe.name}-untrained" if recipe else None
    splits = {split: load_own(arguments.data, split, [own] if own else []) for split in arguments.split}
    examples = examples_folder(arguments, own, next(path for _, path, _ in splits.values()))
    for _, path, _ in splits.values():
        if note := oddity_note(path):
            print(note)

    if recipe is not None:
        assert own is not None
        hub.check_there(recipe, read_record(own) if record_path(own).is_file() else None)
    with announced("loading torch and transformers"):
        from src.model import load as model
        from src.runs import run as runs

    device = model.pick_device(arguments.device)
    if recipe is not None:
        sampling = find_sampling(arguments, recipe.reasoning, recipe.seed)
        words = [recipe.name, "untrained", *([suffix(sampling)] if sampling else [])]
        folder = RESULTS / "-".join(words)
        record = runs.untrained_run(recipe, folder, arguments.device, examples)
    else:
        assert folder is not None
        record = read_run(folder)
        trained_on = record["recipe"].get("reasoning", False)
        reasons = trained_on if arguments.reasoning is None else arguments.reasoning
        sampling = find_sampling(arguments, reasons, record["recipe"]["seed"])
        if arguments.other_prompt or reasons != trained_on:
            word = suffix(sampling) if sampling else "at-once" if trained_on else ""
            folder, record = runs.other_run(folder, record, arguments.other_prompt, reasons, examples, word)
    if arguments.merge and not (folder / ADAPTER).is_dir():
        raise UserError(f"--merge: {folder} has no adapter; its method is {record['recipe']['method']}.")
    seed = record["recipe"]["seed"]
    kept = {split: sample_items(items, arguments.limit, seed) for split, (items, _, _) in splits.items()}
    orders = ORDERS[: arguments.orders]
    encoder, network = runs.open_run(folder, record, list(kept.values()), device, orders, examples)
    for split, items in kept.items():
        _, path, notes = splits[split]
        if arguments.data is None:
            notes = [*notes, f"the items are those of {path}"] if path.parent != DATA else notes
            notes += filter(None, [changed_note(own, split, path) if own else ""])
        file = data_record(path, items)
        before = record.get(results_key(len(orders)), {}).get(split, {})
        if before.get("data_sha256", file["sha256"]) != file["sha256"]:
            notes.append(f"the scores of {before['items']} items of another file in {folder} are replaced")
        for note in notes:
            print(f"{split}: {note}")
        rows = runs.score_run(folder, record, split, items, file, encoder, network, orders, sampling)
        write_json(record_path(folder), record)
        print(runs.result_line(record["run"], split, record[results_key(len(orders))][split]))
        if arguments.output:
            write_text(arguments.output, dump_items(predictions(items, [row.prediction for row in rows])))
    if arguments.merge:
        merged, changed, gap = runs.compare_merged(encoder, network, items)
        print(f"merged: {changed} of {len(items)} answers changed, log-probabilities by at most {gap:.4f}")
        merged.save_pretrained(arguments.merge)
        encoder.tokenizer.chat_template = encoder.chat.dated_template  # the merged model stands alone
        encoder.tokenizer.save_pretrained(arguments.merge)
    flag = f" --orders {arguments.orders}" if arguments.orders > 1 else ""
    print(f"Scores and predictions lie in {folder}. Vote: python -m run.vote{flag}")


def check(arguments: argparse.Namespace, folder: Path | None, recipe: Recipe | None) -> None:
    """Refuses what can be refused before anything dear is imported. folder: of a trained run, else None."""
    if folder:
        refuse_settings(arguments, folder)
        read_run(folder)
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
    sample_items([], arguments.limit, 0)
    if arguments.merge and arguments.merge.exists():
        raise UserError(f"--merge: {arguments.merge} exists already; give a new folder.")


def examples_folder(arguments: argparse.Namespace, own: Path | None, path: Path) -> Path:
    """Where a prompt with examples finds the training split. path: of the items that are scored."""
    if arguments.data is not None:
        return arguments.data if arguments.data.is_dir() else arguments.data.parent
    named = named_data(own, "train") if own else None
    return named[0].parent if named and named[0].is_file() else path.parent


def find_sampling(arguments: argparse.Namespace, reasons: bool, seed: int) -> Any:
    """How chains are generated (`reasoning.Sampling`), None without reasoning."""
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


def suffix(sampling: Any) -> str:
    """What the name of a run with reasoning ends with."""
    return "reasoning" + (f"{sampling.samples}" if sampling.samples > 1 else "")


def refuse_settings(arguments: argparse.Namespace, folder: Path) -> None:
    """A trained run is scored with the prompt, template and base of its record."""
    fixed = [name for name in (*FIELDS, "recipe", "limit") if name not in ("model_id", "reasoning")]
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
    sys.exit(run_main(main))
