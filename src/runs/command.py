"""The command line that `run.train`, `run.train_base` and `orpo.orpo_train` share."""

import shlex
from pathlib import Path

from src import task
from src.console.cli import Parser, UserError, announced, new_folder
from src.data import DATA, oddity_note, split_path
from src.files.paths import RESULTS
from src.model import hub, ranks, trust
from src.model.recipe_flags import add_flags, read_recipe
from src.runs.inputs import began_with, gather, refuse_bare_name
from src.train import reports


def make_parser(doc: str | None, prog: str) -> Parser:
    parser = Parser(doc, prog)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of data_train.json and data_dev.json")
    parser.add_argument(
        "--save_dir", type=new_folder, metavar="DIR", help="folder of the run (default: resource/results/NAME)"
    )
    parser.add_argument("--device", metavar="X", help="cpu, cuda or cuda:N (default: the GPU when there is one)")
    parser.add_argument(
        "--score", nargs="+", default=[], choices=("test",), help="also score this split while the model is loaded"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only N items of each split, to try things out")
    reports.add_flag(parser)
    task.add_flag(parser)
    add_flags(parser)
    return parser


def train(
    parser: Parser, argv: list[str] | None, method: str, only: bool = False, objective: str | None = None
) -> None:
    """Trains as the flags say.

    method     the default; with `only`, every recipe is trained with it
    objective  every recipe is trained with it
    """
    arguments = parser.parse_args(argv)
    if only and arguments.method not in (None, method):
        raise UserError(f"--method {arguments.method}: {parser.prog} trains with {method}; use python -m run.train.")
    if only:
        arguments.method = method
    if objective and arguments.objective not in (None, objective):
        raise UserError(
            f"--objective {arguments.objective}: {parser.prog} trains with {objective}; use python -m run.train."
        )
    if objective:
        arguments.objective = objective
    reports.check(arguments.report_to)
    recipe = read_recipe(arguments, method=method)
    folder = arguments.save_dir or RESULTS / recipe.name
    refuse_bare_name(recipe.model_id)
    ranks.refuse_small_steps(recipe)
    with ranks.at_work(folder):
        with ranks.first_goes_first():
            gather(recipe, folder, arguments.data, arguments.score, arguments.limit)
            began = began_with(folder)
            hub.check_there(recipe, began.commits if began else None)
        for split in ("train", "dev", *arguments.score):
            if note := oddity_note(split_path(arguments.data, split)):
                print(note)
        with announced("loading torch and transformers"):
            import torch

            from src.runs.scoring import result_line
            from src.runs.training import Extras, train_run

        try:
            extras = Extras(arguments.score, arguments.limit, arguments.report_to)
            record = train_run(recipe, folder, arguments.data, arguments.device, extras)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{recipe.name} ran out of GPU memory. What saves some: --gradient_checkpointing on, --method qlora, "
                f"a smaller --batch_size with more --gradient_accumulation_steps. ({str(error).splitlines()[0]})"
            ) from error
    for split, result in record.splits.items():
        print(result_line(record.run, split, result))
    command = f"python -m run.test --model_id {shlex.quote(str(folder))}{trust.words(recipe)}{task.flag()}"
    score = "" if "test" in record.splits else f" Score the test split: {command}"
    print(f"The run lies in {folder}.{score}")
