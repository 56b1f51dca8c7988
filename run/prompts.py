"""Prompts: list them, show an item under one, and compare them.

    python -m run.prompts                                                   # list them
    python -m run.prompts korean+persona+cot --runs polar --item train-3    # one item, and where its tokens go
    python -m run.prompts korean+3shots --lengths                           # how long the items are, by backbone
    python -m run.prompts --compare korean korean+cot korean+3shots --runs Qwen/Qwen2-7B-Instruct polar

RUN is a trained run, by name or folder; or an untrained model, by a recipe's file, a backbone's short name, a hub id or
a folder. Showing an item needs only the tokenizer. Lengths are counted if the tokenizer is on this machine, else
estimated, and nothing is downloaded. A comparison scores the same items of a labelled split under each prompt, and
compares each with the first by McNemar's exact test. The test split has no labels outside NIKL.
"""

import functools
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src import task
from src.console.cli import Parser, UserError, announced, new_file, run_main
from src.console.start import ours
from src.console.words import counted
from src.data import DATA, SPLITS, Item, load_data, load_split, sha256, split_path
from src.files.paths import find_run, weights_folder
from src.files.writing import write_json
from src.model import trust
from src.model.backbones import backbones
from src.model.recipes import Recipe, make_recipe, template_text
from src.plan import lengths
from src.prompt.parts import token_parts
from src.prompt.prompts import available, combinations, load_prompt
from src.runs.inputs import check_models, read_run, sample_items

if TYPE_CHECKING:
    from rich.console import Console

    from src.console.tables import Fitted
    from src.prompt.encode import Encoder

SAMPLE = ours("resource/data/sample.json")
LETTERS_SHOWN = 12
"""How many of the prompt's last tokens are shown; the letters are read after them."""


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.prompts")
    parser.add_argument("prompt", nargs="?", help="show an item under this one (default: list all prompts)")
    parser.add_argument("--compare", nargs="+", metavar="PROMPT", help="score these, and compare each with the first")
    parser.add_argument("--lengths", action="store_true", help="how long items are (default --runs: all backbones)")
    parser.add_argument("--runs", nargs="+", default=[], metavar="RUN", help="trained runs or untrained models")
    parser.add_argument("--split", default="dev", choices=("train", "dev"), help="default: %(default)s")
    parser.add_argument(
        "--data",
        type=Path,
        default=DATA,
        help="folder of data_SPLIT.json, also for examples (default: %(default)s)",
    )
    parser.add_argument("--item", metavar="ID", help="the item to show (default: the first)")
    parser.add_argument("--reasoning", action="store_true", help="show the prompt after which reasoning is generated")
    parser.add_argument(
        "--chat_template", metavar="FILE", help="show or compare untrained models under this one, a text or a file"
    )
    parser.add_argument("--orders", type=int, default=1, metavar="N", help="orders of the options to average over")
    parser.add_argument("--limit", type=int, metavar="N", help="compare on N items only")
    parser.add_argument("--device", metavar="X", help="cpu, cuda or cuda:N (default: the GPU when there is one)")
    parser.add_argument("--json", type=new_file, metavar="OUT", help="write the comparison here, the answers included")
    task.add_flag(parser)
    trust.add_flag(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    from src.console.tables import make_console

    arguments = make_parser().parse_args(argv)
    orders = task.current().orders(arguments.orders)
    console = make_console()
    if arguments.lengths:
        if arguments.compare or not arguments.prompt:
            raise UserError("--lengths takes one prompt: python -m run.prompts korean+3shots --lengths")
        show_lengths(arguments, console)
    elif arguments.compare:
        if not arguments.runs or arguments.prompt:
            raise UserError("--compare takes the prompts itself, and needs at least one of --runs.")
        compare(arguments, orders, console)
    elif arguments.prompt:
        show(arguments, console)
    else:
        console.print(listing(), soft_wrap=True)


# List


def listing() -> str:
    """Every prompt that the files make: a paragraph for each file, a line for each of its strategies."""
    lines = []
    for name in available():
        try:
            base = load_prompt(name)
        except UserError:
            if task.current().categories == task.official().categories:
                raise
            lines += [f"{name}: not for the task {task.current().name}, which has other categories", ""]
            continue
        lines.append(f"{name}: {base.description} ({len(base.system)} characters of system text)")
        together = []
        for combination in combinations(name)[1:]:
            prompt, added = load_prompt(combination), combination.removeprefix(name)
            if added.count("+") > 1:
                together.append(added)
                continue
            told = prompt.description.removeprefix(base.description).strip()
            lines.append(f"    {added:<14}{told} ({len(prompt.system) - len(base.system):+} characters)")
        lines += [f"    together      {', '.join(together)}"] if together else []
        lines += ["    --reasoning   can be generated before the letter (run.test)"] if base.bridge else []
        lines.append("")
    lines.append(
        "Examples go with any of them: +3shots (the same ones for a category), +3near (the nearest to the item)."
    )
    return "\n".join(lines)


# Show


def show(arguments: Namespace, console: "Console") -> None:
    """One item as a backbone sees it; without a backbone as messages."""
    prompt = load_prompt(arguments.prompt)
    item = one_item(arguments)
    if len(arguments.runs) > 1:
        raise UserError(f"an item is shown for one of --runs; found {', '.join(arguments.runs)}.")
    if not arguments.runs:
        if prompt.examples:
            raise UserError(f"prompt {prompt.name} has examples; name a model with --runs to see them in place.")
        for message in prompt.render(item, reasoning=arguments.reasoning).messages:
            console.print(f"[{message['role']}]\n{message['content']}\n", soft_wrap=True)
        console.print(f"answer: {prompt.render(item).answers[item.label or 0]}")
        console.print(
            "Its tokens: add --runs and a run, a backbone's name or a model's folder. How long all items are:"
        )
        console.print(f"python -m run.prompts {arguments.prompt} --lengths{task.flag()}", soft_wrap=True)
        return

    check_models(arguments.runs)
    with announced("loading transformers"):
        from src.runs.encoder import find_library, frozen_in, make_encoder

    name, recipe, folder = named(arguments.runs[0], arguments.chat_template)
    recipe = recipe.replace(prompt=arguments.prompt, reasoning=arguments.reasoning)
    library = find_library(prompt, arguments.data, arguments.reasoning)
    weights = weights_folder(folder) if folder else None
    encoder = make_encoder(recipe, prompt, weights, library, frozen_in(folder))
    for line in encoder.notes([item]):
        console.print(line, soft_wrap=True)
    (example,) = encoder.for_scoring([item])
    console.print(encoder.tokenizer.decode(list(example.ids)), soft_wrap=True)
    console.print(f"\n{name}, prompt {prompt.name}, item {item.id}: {len(example.ids)} tokens", soft_wrap=True)
    console.print(parts_table(encoder, item))
    end = [encoder.tokenizer.decode([id]) for id in example.ids[-LETTERS_SHOWN:]]
    letters = zip(encoder.letters, encoder.letter_ids or (), strict=True)
    told = ", ".join(f"{letter} {id} {encoder.tokenizer.decode([id])!r}" for letter, id in letters)
    console.print(f"the letters are read after {' '.join(map(repr, end))}\nas the tokens {told}", soft_wrap=True)
    if splits := splits_in(arguments.data):
        gauge = lengths.Gauge(recipe, lengths.Texts(splits), encoder=encoder)
        print_lengths({name: gauge}, splits, prompt.name, console)


def one_item(arguments: Namespace) -> Item:
    data = arguments.data if (arguments.data / f"data_{arguments.split}.json").is_file() else SAMPLE
    items, path = load_data(data, arguments.split)
    if arguments.item is None:
        return items[0]
    found = next((item for item in items if item.id == arguments.item), None)
    if found is None:
        raise UserError(f"{path} has no item {arguments.item}; its first is {items[0].id}.")
    return found


def parts_table(encoder: "Encoder", item: Item) -> "Fitted":
    from rich.table import Table

    from src.console.tables import Fitted

    table = Table("part", "tokens")
    (counts,) = token_parts(encoder, [item])
    for part, count in counts.items():
        table.add_row(part, f"{count}")
    return Fitted(table)


def named(given: str, chat_template: str | None) -> tuple[str, Recipe, Path | None]:
    """`named_model`, for an untrained model with another chat template if one is given."""
    from src.runs.inputs import named_model

    name, recipe, folder = named_model(given)
    if chat_template is None:
        return name, recipe, folder
    if folder is not None:
        raise UserError(f"--chat_template: {given} is a trained run and keeps the template that it was trained with.")
    return name, recipe.replace(chat_template=template_text(chat_template, "--chat_template")), None


# Lengths


def show_lengths(arguments: Namespace, console: "Console") -> None:
    """A table of how long the items of every split are for each of the runs, or for all backbones."""
    prompt, splits = load_prompt(arguments.prompt), splits_in(arguments.data)
    if not splits or (prompt.examples and "train" not in splits):
        load_split(arguments.data, "train")  # says what is missing
    texts, gauges = lengths.Texts(splits), {}
    for given in arguments.runs or backbones():
        if given in backbones() and find_run(given) is None and arguments.chat_template is None:
            name, recipe, folder = given, make_recipe({"backbone": given}, given), None  # torch is not needed for it
        else:
            name, recipe, folder = named(given, arguments.chat_template)
        recipe = recipe.replace(prompt=arguments.prompt, reasoning=arguments.reasoning)
        gauges[name] = lengths.Gauge(recipe, texts, trained=folder)
    print_lengths(gauges, splits, prompt.name, console)


def splits_in(data: Path) -> dict[str, list[Item]]:
    return {split: load_split(data, split) for split in SPLITS if split_path(data, split).is_file()}


def print_lengths(gauges: Mapping[str, lengths.Gauge], splits: Iterable[str], prompt: str, console: "Console") -> None:
    found = {name: [gauge.whole_split(split) for split in splits] for name, gauge in gauges.items()}
    console.print(lengths.table(gauges, found, f"Tokens of an item with prompt {prompt}"))
    if any(one.too_long for some in found.values() for one in some):
        console.print(lengths.ADVICE, soft_wrap=True)


# Compare


def compare(arguments: Namespace, orders: Sequence[str], console: "Console") -> None:
    """One table a run: every prompt on the same items, each compared with the first."""
    if len(set(arguments.compare)) < len(arguments.compare):
        raise UserError("--compare: a prompt is named twice.")
    prompts = [load_prompt(name) for name in arguments.compare]
    items, path = load_data(arguments.data, arguments.split, all_labelled=True)
    check_models(arguments.runs)
    items = sample_items(items, arguments.limit, seed=0)
    with announced("loading torch and transformers"):
        from src.model import load
        from src.score.letters import LetterScorer
        from src.search.compare import compare_with_first, encoder_for, refuse_too_long, score_prompt

    device = load.pick_device(arguments.device)
    chosen = [(given, *named(given, arguments.chat_template)) for given in arguments.runs]
    # Every prompt must fit every model before the first model is loaded.
    encoders = {
        given: [encoder_for(prompt, recipe, folder, arguments.data) for prompt in prompts]
        for given, _, recipe, folder in chosen
    }
    refuse_too_long(encoders, items, orders)
    console.print(f"{len(items)} items of {path}, {counted(arguments.orders, 'order')} of the options")
    runs = []
    for given, name, recipe, folder in chosen:
        network = load.load_run(folder or Path(), recipe, device, trained=folder is not None)
        # After another prompt the letters may be other tokens.
        scorers = functools.cache(functools.partial(LetterScorer, network))
        results = [score_prompt(scorers, encoder, items, orders) for encoder in encoders[given]]
        compare_with_first(results)
        runs.append({"run": name, "trained_with": trained_with(given), "prompts": results})
        console.print(comparison(runs[-1]))
        del network, scorers
    console.print(
        "against first: items that this prompt alone (+), and the first alone (−) gets right; "
        "p: McNemar's exact test, two-sided, not corrected for how many prompts are compared. "
        "tokens: of a prompt, and the share of them that prompts with the same beginning save.",
        soft_wrap=True,
    )
    if arguments.json:
        data = {"path": path, "sha256": sha256(path), "ids": [item.id for item in items], "orders": arguments.orders}
        write_json(arguments.json, {"data": data, "runs": runs})
        console.print(f"written: {arguments.json}")


def trained_with(given: str) -> str | None:
    folder = find_run(given)
    return read_run(folder).prompt.name if folder else None


def comparison(result: dict[str, Any]) -> "Fitted":
    from rich.table import Table

    from src.console.tables import Fitted

    title = result["run"] + (f", trained with {result['trained_with']}" if result["trained_with"] else "")
    table = Table("prompt", "accuracy", "95 %", "against first", "p", "tokens", "seconds", title=title)
    for place, one in enumerate(result["prompts"]):
        low, high = one["interval"]
        p = f"{one['p']:.3f}" if one["p"] >= 0.001 else "< 0.001"
        against = ["–", "–"] if place == 0 else [f"+{one['gained']} −{one['lost']}", p]
        costs = [f"{one['tokens']:.0f}, {one['shared']:.0%}", f"{one['seconds']:.1f}"]
        table.add_row(one["prompt"], f"{one['accuracy']:.1%}", f"{100 * low:.0f}–{100 * high:.0f}", *against, *costs)
    return Fitted(table)


if __name__ == "__main__":
    sys.exit(run_main(main))
