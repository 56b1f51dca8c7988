"""Score a split with one run: three letter logits per item, and predictions in the submission's form.

    python -m run.test --model_id resource/results/polar
    python -m run.test --model_id polar --split dev test --orders 6
    python -m run.test --model_id Qwen/Qwen2-7B-Instruct --method lora --split dev

The first two take a trained run with the prompt and template of its record; the last one an untrained model from
the hub or a folder (the zero-shot row), which becomes a run NAME-untrained. Writes scores_SPLIT.jsonl and
predictions_SPLIT.json into the run's folder.
"""

import argparse
import sys
from pathlib import Path

from src.cli import Parser, UserError, run_main
from src.data import SPLITS, dump_items, load_data, predictions, sha256
from src.prompts import ORDERS
from src.recipes import FIELDS, add_flags, read_recipe
from src.records import RESULTS, find_run, read_record, record_path, write_json, write_text


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.test")
    parser.add_argument("--split", nargs="+", default=["test"], choices=SPLITS, help="splits to score (default: test)")
    parser.add_argument(
        "--data", type=Path, default=Path("resource/data"), help="folder of data_SPLIT.json, or one such file"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the predictions here")
    parser.add_argument("--device", metavar="X", help="cpu, cuda or cuda:N (default: the GPU when there is one)")
    parser.add_argument(
        "--orders", type=int, default=1, choices=(1, 6), help="orders of the options to average over (default: 1)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only N items, to try an untrained model out")
    parser.add_argument(
        "--merge",
        type=Path,
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
    if len(arguments.split) > 1 and (arguments.output or arguments.data.suffix == ".json"):
        raise UserError("--output and a --data file go with one --split; found " + ", ".join(arguments.split) + ".")
    splits = {split: load_data(arguments.data, split) for split in arguments.split}

    from src import model, runs

    device = model.pick_device(arguments.device)
    if recipe is not None:
        folder = RESULTS / f"{recipe.name}-untrained"
        record = runs.untrained_run(recipe, folder, arguments.device)
    else:
        assert folder is not None
        record = read_record(folder)
    if arguments.merge and not (folder / model.ADAPTER).is_dir():
        raise UserError(f"--merge: {folder} has no adapter; its method is {record['recipe']['method']}.")
    if arguments.merge and arguments.merge.exists():
        raise UserError(f"--merge: {arguments.merge} exists already; give a new folder.")
    kept = {
        split: runs.sample_items(items, arguments.limit, record["recipe"]["seed"])
        for split, (items, _) in splits.items()
    }
    orders = ORDERS[: arguments.orders]
    encoder, network = runs.open_run(folder, record, list(kept.values()), device, orders)
    for split, items in kept.items():
        path = splits[split][1]
        data_record = {"path": str(path), "sha256": sha256(path), "items": len(items)}
        rows = runs.score_run(folder, record, split, items, data_record, encoder, network, orders)
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


def refuse_settings(arguments: argparse.Namespace, folder: Path) -> None:
    """A trained run is scored with the prompt, template and base of its record."""
    fixed = [name for name in (*FIELDS, "recipe", "limit") if name != "model_id"]
    given = [name for name in fixed if getattr(arguments, name) is not None]
    if given:
        names = ", ".join(f"--{name}" for name in given)
        raise UserError(
            f"{folder} is a trained run and is scored whole, with the settings in its record; leave out {names}."
        )


if __name__ == "__main__":
    sys.exit(run_main(main))
