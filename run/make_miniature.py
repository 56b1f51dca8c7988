"""Make the miniature: the sample corpus, the eight backbones at toy size, and a recipe for each. Offline, on a CPU.

    python -m run.make_miniature
    python -m run.make_miniature --only qwen2 solarko
    python -m run.make_miniature --out /tmp/miniature

Writes data/data_{train,dev,test}.json, backbones/<short>/ and recipes/mini-<short>.yaml. Complete files and folders are
left as they are; remove a folder to have it made again. Everything is invented, and all numbers from it are the
miniature's.
"""

import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src.console.cli import Parser, UserError, nearest, new_folder, run_main
from src.console.start import ours
from src.data import SPLITS, dump_items, split_path
from src.files.locks import lock_folder
from src.files.writing import write_text, write_texts


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.make_miniature")
    parser.add_argument(
        "--out",
        type=new_folder,
        default=ours("resource/miniature"),
        metavar="DIR",
        help="folder (default: %(default)s)",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these backbones, and those they start from")
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    started = time.monotonic()

    from src.toy import miniature

    values = miniature.load_values()
    known = values["backbones"]
    for name in arguments.only or ():
        if name not in known:
            raise UserError(f"--only: there is no backbone {name!r}. Known: {', '.join(known)}.{nearest(name, known)}")

    with lock_folder(arguments.out):
        recipes = make_all(arguments.out, values, arguments.only or list(known))
    again = f"python -m run.reproduce --recipes {recipes} --data {arguments.out / 'data'}"
    print(f"{time.monotonic() - started:.0f} s. Next: {again}")


def make_all(out: Path, values: dict[str, Any], names: list[str]) -> Path:
    """Makes what is missing in `out`, and returns the folder of the recipes."""
    from src.toy import miniature
    from src.toy.corpus import make_corpus

    data, folder = out / "data", out / "backbones"
    if all(split_path(data, split).is_file() for split in SPLITS):
        print(f"{data}: complete")
    else:
        splits = make_corpus()
        write_texts({split_path(data, split): dump_items(items) for split, items in splits.items()}, all_or_none=True)
        print(f"{data}: " + ", ".join(f"{len(items)} {split}" for split, items in splits.items()) + " items")
    recipes = out / "recipes"
    for name, text in miniature.recipes(values, folder).items():
        write_text(recipes / f"{name}.yaml", text)

    families = by_family(values["backbones"], names)
    # Each process computes with its share of the cores: two small models side by side are quicker than one on both.
    with ProcessPoolExecutor(min(len(families), os.cpu_count() or 1), get_context("spawn")) as pool:
        list(pool.map(make_family, families, [folder] * len(families)))
    return recipes


def by_family(backbones: dict[str, Any], names: list[str]) -> list[list[str]]:
    """`names` and the backbones that they start from, in families that share no parent; parents come first."""
    families: dict[str, list[str]] = {}
    for name in names:
        chain = [name]
        while parent := backbones[chain[0]].get("parent"):
            chain.insert(0, parent)
        family = families.setdefault(chain[0], [])
        family += [one for one in chain if one not in family]
    return list(families.values())


def make_family(names: list[str], folder: Path) -> None:
    import torch
    import transformers

    from src.toy.miniature import load_values
    from src.toy.miniature_tokenizers import tokenizer_texts

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    values = load_values()
    texts: list[str] = []
    for short in names:
        if (folder / short).is_dir():
            print(f"{folder / short}: complete", flush=True)
            continue
        texts = texts or tokenizer_texts(values)
        make(short, folder, values, texts)


def make(short: str, folder: Path, values: dict[str, Any], texts: list[str]) -> None:
    """Makes one backbone under a temporary name, so that a folder of the final name is complete."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from src.console import progress
    from src.toy.miniature import make_backbone

    started = time.monotonic()
    spec = values["backbones"][short]
    parent = None
    if "parent" in spec:
        source = folder / spec["parent"]
        parent = (
            AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32),
            AutoTokenizer.from_pretrained(source),
        )
    with progress.stage(short, values["pretraining"]["at_most"]) as bar:
        network, tokenizer, accuracy = make_backbone(short, values, texts, parent, bar.update)
    part = folder / f"{short}.part"
    shutil.rmtree(part, ignore_errors=True)
    network.to(getattr(torch, spec["dtype"])).save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(folder / short)
    config = network.config
    print(
        f"{folder / short}: {config.model_type}, {config.num_hidden_layers} layers, "
        f"{network.num_parameters():,} parameters, {len(tokenizer)} tokens, "
        f"{accuracy or 0:.2f} of new letters right, {time.monotonic() - started:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
