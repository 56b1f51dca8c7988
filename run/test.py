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

from src.cli import Parser, UserError, new_file, new_folder, run_main
from src.data import SPLITS, dump_items, load_data, oddity_note, predictions, sha256
from src.prompts import ORDERS
from src.recipes import FIELDS, add_flags, read_recipe
from src.records import RESULTS, find_run, read_record, record_path, write_json, write_text


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.test")
    parser.add_argument("--split", nargs="+", default=["test"], choices=SPLITS, help="splits to score (default: test)")
    parser.add_argument(
        "--data", type=Path, default=Path("resource/data"), help="folder of data_SPLIT.json, or one such file"
    )
    parser.add_argument("--output", type=new_file, metavar="FILE", help="also write the predictions here")
    parser.add_argument("--device", metavar="X", help="cpu, cuda or cuda:N (default: the GPU when there is one)")
    parser.add_argument(
        "--orders", type=int, default=1, choices=(1, 6), help="orders of the options to average over (default: 1)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only N items, to try an untrained model out")
    parser.add_argument(
        "--other_prompt", metavar="NAME", help="score a trained run with a prompt that it was not trained with"
    )
    parser.add_argument("--samples", type=int, metavar="N", help="chains of reasoning for each prompt (default: 1)")
    parser.add_argument(
        "--temperature", type=float, metavar="X", help="of sampled chains (default: 0 for one chain, 0.7 for several)"
    )
    parser.add_argument("--top_p", type=float, metavar="X", help="sample from the likeliest tokens of this share (1.0)")
    parser.add_argument("--max_new_tokens", type=int, metavar="N", help="longest chain in tokens (default: 256)")
    parser.add_argument("--sampling_seed", type=int, metavar="N", help="of the chains (default: the recipe's seed)")
    parser.add_argument(
        "--merge",
        type=new_folder,
        metavar="DIR",
        help="also save the adapter merged into its base there, after comparing answers",
    )
    add_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    folder = find_run(arguments.model_id)
    recipe = None if folder else read_recipe(arguments, method="lora")
    if folder:
        refuse_settings(arguments, folder)
    elif arguments.other_prompt:
        raise UserError(
            f"--other_prompt goes with a trained run; for an untrained model: --prompt {arguments.other_prompt}"
        )
    if len(arguments.split) > 1 and (arguments.output or arguments.data.suffix == ".json"):
        raise UserError("--output and a --data file go with one --split; found " + ", ".join(arguments.split) + ".")
    splits = {split: load_data(arguments.data, split) for split in arguments.split}
    for _, path in splits.values():
        if note := oddity_note(path):
            print(note)

    from src import model, runs

    device = model.pick_device(arguments.device)
    examples = arguments.data if arguments.data.is_dir() else arguments.data.parent
    if recipe is not None:
        sampling = find_sampling(arguments, recipe.reasoning, recipe.seed)
        words = [recipe.name, "untrained", *([suffix(sampling)] if sampling else [])]
        folder = RESULTS / "-".join(words)
        record = runs.untrained_run(recipe, folder, arguments.device, examples)
    else:
        assert folder is not None
        record = read_record(folder)
        trained_on = record["recipe"].get("reasoning", False)
        reasons = trained_on if arguments.reasoning is None else arguments.reasoning
        sampling = find_sampling(arguments, reasons, record["recipe"]["seed"])
        if arguments.other_prompt or reasons != trained_on:
            word = suffix(sampling) if sampling else "at-once" if trained_on else ""
            folder, record = runs.other_run(folder, record, arguments.other_prompt, reasons, examples, word)
    if arguments.merge and not (folder / model.ADAPTER).is_dir():
        raise UserError(f"--merge: {folder} has no adapter; its method is {record['recipe']['method']}.")
    if arguments.merge and arguments.merge.exists():
        raise UserError(f"--merge: {arguments.merge} exists already; give a new folder.")
    kept = {
        split: runs.sample_items(items, arguments.limit, record["recipe"]["seed"])
        for split, (items, _) in splits.items()
    }
    orders = ORDERS[: arguments.orders]
    encoder, network = runs.open_run(folder, record, list(kept.values()), device, orders, examples)
    for split, items in kept.items():
        path = splits[split][1]
        data_record = {"path": str(path), "sha256": sha256(path), "items": len(items)}
        before = record["splits"].get(split, {})
        if before.get("data_sha256", data_record["sha256"]) != data_record["sha256"]:
            print(f"{split}: the scores of {before['items']} items of another file in {folder} are replaced")
        rows = runs.score_run(folder, record, split, items, data_record, encoder, network, orders, sampling)
        write_json(record_path(folder), record)
        print(runs.result_line(record["run"], split, record["splits"][split]))
        if arguments.output:
            write_text(arguments.output, dump_items(predictions(items, [row.prediction for row in rows])))
    if arguments.merge:
        merged, changed, gap = runs.compare_merged(encoder, network, items)
        print(f"merged: {changed} of {len(items)} answers changed, log-probabilities by at most {gap:.4f}")
        merged.save_pretrained(arguments.merge)
        encoder.tokenizer.chat_template = encoder.template  # the merged model stands alone
        encoder.tokenizer.save_pretrained(arguments.merge)
    print(f"Scores and predictions lie in {folder}. Vote: python -m run.vote")


def find_sampling(arguments: argparse.Namespace, reasons: bool, seed: int) -> Any:
    """How chains are generated (`reasoning.Sampling`), None without reasoning."""
    names = ("samples", "temperature", "top_p", "max_new_tokens")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if not reasons:
        if given:
            raise UserError(f"{', '.join(f'--{name}' for name in given)}: of use with --reasoning only.")
        return None

    from src.reasoning import Sampling

    if given.get("samples", 1) > 1:
        given = {"temperature": 0.7, **given}
    return Sampling(**given, seed=seed if arguments.sampling_seed is None else arguments.sampling_seed)


def suffix(sampling: Any) -> str:
    """What the name of a run with reasoning ends with."""
    return "reasoning" + (f"{sampling.samples}" if sampling.samples > 1 else "")


def refuse_settings(arguments: argparse.Namespace, folder: Path) -> None:
    """A trained run is scored with the prompt, template and base of its record."""
    fixed = [name for name in (*FIELDS, "recipe", "limit") if name not in ("model_id", "reasoning")]
    given = [name for name in fixed if getattr(arguments, name) is not None]
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
