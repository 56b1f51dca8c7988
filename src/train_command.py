"""The command line that `run.train`, `run.train_base` and `orpo.orpo_train` share."""

import os
from pathlib import Path

from src import hub
from src.cli import Parser, UserError, new_folder
from src.recipes import add_flags, read_recipe
from src.records import RESULTS, alone_in, began_with


def make_parser(doc: str | None, prog: str) -> Parser:
    parser = Parser(doc, prog)
    parser.add_argument(
        "--data", type=Path, default=Path("resource/data"), help="folder of data_train.json and data_dev.json"
    )
    parser.add_argument(
        "--save_dir", type=new_folder, metavar="DIR", help="folder of the run (default: resource/results/NAME)"
    )
    parser.add_argument("--device", metavar="X", help="cpu, cuda or cuda:N (default: the GPU when there is one)")
    parser.add_argument(
        "--score", nargs="+", default=[], choices=("test",), help="also score this split while the model is loaded"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only N items of each split, to try things out")
    add_flags(parser)
    return parser


def alone(prog: str) -> None:
    """UserError when this is one of several processes; what a launcher or a shell says of one process is dropped, which
    accelerate would take for several.
    """
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        if os.environ.get(name, "1") not in ("", "0", "1"):
            raise UserError(
                f"{prog} trains one run on one GPU; started as one of {os.environ[name]} processes ({name}). "
                "Several GPUs are used for several runs: python -m run.reproduce"
            )
        os.environ.pop(name, None)
    for name in ("LOCAL_RANK", "RANK"):
        os.environ.pop(name, None)


def train(
    parser: Parser, argv: list[str] | None, method: str, only: bool = False, objective: str | None = None
) -> None:
    """Trains as the flags say. `method` is the default, or, with `only`, the one that any recipe is trained with.
    objective: the one that any recipe is trained with.
    """
    arguments = parser.parse_args(argv)
    alone(parser.prog)
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
    recipe = read_recipe(arguments, method=method)
    folder = arguments.save_dir or RESULTS / recipe.name
    hub.check_there(recipe, began_with(folder))

    import torch

    from src.runs import result_line, train_run

    try:
        with alone_in(folder):
            record = train_run(recipe, folder, arguments.data, arguments.device, arguments.score, arguments.limit)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{recipe.name} ran out of GPU memory. What saves some: --gradient_checkpointing on, --method qlora, a "
            f"smaller --batch_size with more --gradient_accumulation_steps. ({str(error).splitlines()[0]})"
        ) from error
    for split, result in record["splits"].items():
        print(result_line(record["run"], split, result))
    score = "" if "test" in record["splits"] else f" Score the test split: python -m run.test --model_id {folder}"
    print(f"The run lies in {folder}.{score}")
