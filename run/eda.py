"""Run the notebooks of eda/ from top to bottom and keep their pictures: what the corpus looks like.

    python -m run.eda                  # resource/data if it is prepared, else the sample corpus
    python -m run.eda --only train
    python -m run.eda --sample         # the sample corpus, to renew what is committed
    python -m run.eda --check          # refuse outputs that may not be committed
    python -m run.eda --strip          # take all outputs out of the notebooks

The sample corpus is invented: its outputs go into the notebooks and beside them. Outputs of any other corpus go to
resource/results/eda, which git ignores, with a page for the browser. Nothing is downloaded.
"""

import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src.console.cli import Parser, UserError, new_folder, run_main
from src.data import DATA
from src.files.paths import RESULTS


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.eda")
    parser.add_argument("--only", choices=("train", "test"), help="one of the two notebooks; both by default")
    parser.add_argument("--data", type=Path, default=DATA, help="the corpus' folder; default: %(default)s")
    parser.add_argument("--out", type=new_folder, metavar="DIR", help="where to write; default: see above")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--sample", action="store_true", help="the sample corpus, whatever is in --data")
    modes.add_argument("--check", action="store_true", help="run nothing: name outputs that may not be committed")
    modes.add_argument("--strip", action="store_true", help="run nothing: take all outputs out of the notebooks")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        from src.eda import measures as eda
        from src.eda import notebooks
    except ModuleNotFoundError as error:
        raise UserError(f"the package {error.name} is missing: pip install -r requirements-eda.txt") from error
    chosen = {split: path for split, path in notebooks.NOTEBOOKS.items() if args.only in (None, split)}

    if args.check:
        found = notebooks.check(data=args.data)
        for line in found:
            print(line, file=sys.stderr)
        if found:
            print("renew with: python -m run.eda --sample, or strip with: python -m run.eda --strip", file=sys.stderr)
        else:
            print(f"{notebooks.HOME}: nothing but the sample corpus")
        return 1 if found else 0
    if args.strip:
        from src.files.writing import write_text

        for path in chosen.values():
            write_text(path, notebooks.text_of(notebooks.stripped(notebooks.read(path))))
            print(f"{path}: no outputs")
        return 0

    corpus = eda.sample_corpus() if args.sample else eda.read_corpus(args.data)
    ours = corpus.kind == eda.SAMPLE
    home = notebooks.HOME.resolve()
    out = args.out or (notebooks.HOME if ours else RESULTS / "eda")
    if not ours and (out.resolve() == home or home in out.resolve().parents):
        raise UserError(
            f"--out {out}: found the folder of the committed notebooks; allowed: any other. The corpus in {args.data} "
            "is licensed and must not be committed."
        )
    print(f"{corpus.name}: {', '.join(f'{split} {len(items)}' for split, items in corpus.splits.items())} items")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        data = eda.SAMPLE if ours else args.data
        jobs = {split: pool.submit(run, path, data, Path(temporary)) for split, path in chosen.items()}
        for split, job in jobs.items():
            notebook = job.result()
            pictures = sorted((Path(temporary) / split).glob("*.png"))
            write(notebook, pictures, out / split, chosen[split].name, page=not ours)
            seconds = time.monotonic() - started
            print(f"{out / split}: {chosen[split].name} and {len(pictures)} pictures, {seconds:.0f} s")
    return 0


def run(path: Path, data: Path | str, out: Path) -> Any:
    """The executed notebook. UserError with the last lines of a cell that failed."""
    from nbclient.exceptions import CellExecutionError

    from src.eda import notebooks

    try:
        return notebooks.executed(path, data, out)
    except CellExecutionError as error:
        raise UserError(f"{path} stopped: {error.ename}: {error.evalue}") from error


def write(notebook: Any, pictures: list[Path], folder: Path, name: str, page: bool) -> None:
    """Notebook and pictures, and a page for the browser; pictures that the notebook no longer draws are removed."""
    from src.eda import notebooks
    from src.files.writing import write_text

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{folder.name}_*.png"):
        if old.name not in [picture.name for picture in pictures]:
            old.unlink()
    for picture in pictures:
        part = folder / f".{picture.name}.tmp"
        shutil.copyfile(picture, part)
        part.replace(folder / picture.name)
    write_text(folder / name, notebooks.text_of(notebook))
    if page:
        from nbconvert import HTMLExporter

        text, _ = HTMLExporter(exclude_input=True).from_notebook_node(notebook)
        write_text((folder / name).with_suffix(".html"), text)


if __name__ == "__main__":
    sys.exit(run_main(main))
