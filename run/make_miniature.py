"""Make the miniature: the sample corpus, the eight backbones at toy size, and a recipe for each. Offline, on a CPU.

    python -m run.make_miniature
    python -m run.make_miniature --only qwen2 solarko
    python -m run.make_miniature --out /tmp/miniature
    python -m run.make_miniature --out /tmp/miniature --anew

Writes data/data_{train,dev,test}.json, backbones/<short>/ and recipes/mini-<short>.yaml. Complete files and folders are
left as they are; remove a folder to have it made again. The backbones are those of resource/miniature/pretrained; with
--anew, or with other values in resource/miniature/miniature.yaml, they are pre-trained here, which takes some minutes.
Everything is invented, and all numbers from it are the miniature's.
"""

import os
import shutil
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
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
    parser.add_argument("--anew", action="store_true", help="pre-train the backbones that are missing")
    parser.add_argument(
        "--keep", action="store_true", help="with --anew: put all backbones into resource/miniature/pretrained"
    )
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

    if arguments.keep and (arguments.only or not arguments.anew):
        raise UserError("--keep needs --anew, and no --only: it replaces all backbones that come with the repository.")

    with lock_folder(arguments.out):
        recipes = make_all(arguments.out, values, arguments.only or list(known), arguments.anew)
        if arguments.keep:
            from src.toy import pretrained

            pretrained.keep(arguments.out / "backbones", values)
            print(f"{pretrained.PRETRAINED}: {', '.join(known)} kept")
    again = f"python -m run.reproduce --recipes {recipes} --data {arguments.out / 'data'}"
    print(f"{time.monotonic() - started:.0f} s. Next: {again}")


def make_all(out: Path, values: dict[str, Any], names: list[str], anew: bool = False) -> Path:
    """Makes what is missing in `out`, and returns the folder of the recipes. anew: as the flag."""
    from src.toy import miniature, pretrained
    from src.toy.corpus import make_corpus

    data, folder = out / "data", out / "backbones"
    if all(split_path(data, split).is_file() for split in SPLITS):
        print(f"{data}: complete")
    else:
        splits = make_corpus(sizes=values["corpus"])
        write_texts({split_path(data, split): dump_items(items) for split, items in splits.items()}, all_or_none=True)
        print(f"{data}: " + ", ".join(f"{len(items)} {split}" for split, items in splits.items()) + " items")
    recipes = out / "recipes"
    for name, text in miniature.recipes(values, folder).items():
        write_text(recipes / f"{name}.yaml", text)

    wanted = with_parents(values["backbones"], names)
    missing = [name for name in wanted if not (folder / name).is_dir()]
    if complete := [name for name in wanted if name not in missing]:
        print(f"{folder}: {', '.join(complete)} complete")
    if missing and not anew and pretrained.fit(values):
        pretrained.copy(missing, folder)
        print(f"{folder}: {', '.join(missing)} as they come with the repository")
    elif missing:
        make_backbones(missing, values["backbones"], folder)
    return recipes


def with_parents(backbones: dict[str, Any], names: list[str]) -> list[str]:
    """`names` and the backbones that they start from; parents come first."""
    found: list[str] = []
    for name in names:
        chain = [name]
        while parent := backbones[chain[0]].get("parent"):
            chain.insert(0, parent)
        found += [one for one in chain if one not in found]
    return found


def make_backbones(names: list[str], backbones: dict[str, Any], folder: Path) -> None:
    """Makes each backbone as soon as its parent is there. `names`: parents first."""
    # Each process computes with its share of the cores: two small models side by side are quicker than one on both.
    with ProcessPoolExecutor(min(len(names), os.cpu_count() or 1), get_context("spawn")) as pool:
        waiting, running = list(names), dict[Future[None], str]()
        while waiting or running:
            for name in [one for one in waiting if backbones[one].get("parent") not in (*waiting, *running.values())]:
                waiting.remove(name)
                running[pool.submit(make_one, name, folder)] = name
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                del running[done]
                done.result()


def make_one(short: str, folder: Path) -> None:
    """Makes one backbone in a process of `make_backbones`."""
    import torch
    import transformers

    from src.toy.miniature import load_values
    from src.toy.miniature_tokenizers import tokenizer_texts

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    values = load_values()
    make(short, folder, values, tokenizer_texts(values))


def make(short: str, folder: Path, values: dict[str, Any], texts: list[str]) -> None:
    """Makes one backbone under a temporary name, so that a folder of the final name is complete."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from src.console import progress
    from src.toy.miniature import make_backbone, pretraining

    started = time.monotonic()
    spec = values["backbones"][short]
    parent = None
    if "parent" in spec:
        source = folder / spec["parent"]
        parent = (
            AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32),
            AutoTokenizer.from_pretrained(source),
        )
    with progress.stage(short, int(pretraining(spec, values)["at_most"])) as bar:
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
