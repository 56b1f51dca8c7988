"""Make the miniature: the sample corpus, the eight backbones at toy size, and a recipe for each. Needs no network and no GPU.

    python -m run.make_miniature
    python -m run.make_miniature --only qwen2 solarko
    python -m run.make_miniature --out /tmp/miniature

Writes data/data_{train,dev,test}.json, backbones/<short>/ and recipes/mini-<short>.yaml. What is complete is left as it is: remove a
folder to have it made anew. Everything is invented, and numbers that come of it are the miniature's.
"""

import shutil
import sys
import time
from pathlib import Path

from src.cli import Parser, UserError, nearest, run_main
from src.data import SPLITS, dump_items, split_path
from src.records import write_text, write_texts


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.make_miniature")
    parser.add_argument(
        "--out", type=Path, default=Path("resource/miniature"), metavar="DIR", help="folder (default: %(default)s)"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these backbones, and those they start from")
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    started = time.monotonic()

    import transformers

    from src import corpus, miniature

    transformers.utils.logging.disable_progress_bar()
    values = miniature.load_values()
    known = values["backbones"]
    for name in arguments.only or ():
        if name not in known:
            raise UserError(f"--only: there is no backbone {name!r}. Known: {', '.join(known)}.{nearest(name, known)}")

    data, folder = arguments.out / "data", arguments.out / "backbones"
    if all(split_path(data, split).is_file() for split in SPLITS):
        print(f"{data}: complete")
    else:
        splits = corpus.make_corpus()
        write_texts({split_path(data, split): dump_items(items) for split, items in splits.items()})
        print(f"{data}: " + ", ".join(f"{len(items)} {split}" for split, items in splits.items()) + " items")
    for name, text in miniature.recipes(values, folder).items():
        write_text(arguments.out / "recipes" / f"{name}.yaml", text)

    texts: list[str] = []
    for short in in_order(known, arguments.only or list(known)):
        if (folder / short).is_dir():
            print(f"{folder / short}: complete")
            continue
        texts = texts or miniature.tokenizer_texts(values)
        make(short, folder, values, texts)
    print(f"{time.monotonic() - started:.0f} s. Next: python -m run.reproduce --recipes {arguments.out / 'recipes'} --data {data}")


def in_order(backbones: dict, names: list[str]) -> list[str]:
    """`names` and all that they start from, each behind what it starts from."""
    order: list[str] = []
    for name in names:
        chain = [name]
        while parent := backbones[chain[-1]].get("parent"):
            chain.append(parent)
        order += [one for one in reversed(chain) if one not in order]
    return order


def make(short: str, folder: Path, values: dict, texts: list[str]) -> None:
    """Makes one backbone under a temporary name, so that its folder is complete when it is there."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from src import miniature, progress

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
        network, tokenizer, accuracy = miniature.make_backbone(short, values, texts, parent, bar.update)
    part = folder / f"{short}.part"
    shutil.rmtree(part, ignore_errors=True)
    network.to(getattr(torch, spec["dtype"])).save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(folder / short)
    config = network.config
    print(
        f"{folder / short}: {config.model_type}, {config.num_hidden_layers} layers, {network.num_parameters():,} parameters, "
        f"{len(tokenizer)} tokens, {accuracy or 0:.2f} of new letters right, {time.monotonic() - started:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
