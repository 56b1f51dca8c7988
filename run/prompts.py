"""Prompts: what there is, how an item looks under one, and which is better.

    python -m run.prompts                                                   # list them
    python -m run.prompts korean+persona+cot --runs polar --item train-3    # one item, and where its tokens go
    python -m run.prompts korean+3shots --lengths                           # how long the items are, by backbone
    python -m run.prompts --compare korean korean+cot korean+3shots --runs Qwen/Qwen2-7B-Instruct polar

RUN is a trained run, by name or folder; or an untrained model, by a recipe's file, a backbone's short name, a hub id or
a folder. Showing an item takes its tokenizer only. Lengths are counted where the tokenizer is on this machine, else
estimated, and nothing is downloaded. A comparison scores the same items of a labelled split under each prompt, and
holds each against the first by McNemar's exact test. The test split has no labels outside NIKL.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src.console.cli import Parser, UserError, announced, new_file, run_main
from src.console.start import ours
from src.console.words import counted
from src.data import DATA, SPLITS, Item, load_data, load_split, sha256, split_path
from src.files.paths import find_run
from src.files.writing import write_json
from src.model.recipes import backbones, make_recipe, template_text
from src.plan import lengths
from src.prompt.prompts import MARKS, ORDERS, Prompt, available, combinations, load_prompt
from src.runs.inputs import check_limit, check_models, named_model, read_run, refuse_unlabelled, sample_items
from src.worth.metrics import evaluate, mcnemar

SAMPLE = ours("resource/data/sample.json")
LETTERS_SHOWN = 12
"""Tokens in front of the letters that are shown."""


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.prompts")
    parser.add_argument("prompt", nargs="?", help="show an item under this one (default: list all prompts)")
    parser.add_argument(
        "--compare", nargs="+", metavar="PROMPT", help="score these, the first is what others are held to"
    )
    parser.add_argument("--lengths", action="store_true", help="how long items are (default --runs: all backbones)")
    parser.add_argument("--runs", nargs="+", default=[], metavar="RUN", help="trained runs or untrained models")
    parser.add_argument("--split", default="dev", choices=("train", "dev"), help="default: %(default)s")
    parser.add_argument(
        "--data",
        type=Path,
        default=DATA,
        help="folder of data_SPLIT.json, where examples come from, too (default: %(default)s)",
    )
    parser.add_argument("--item", metavar="ID", help="the item to show (default: the first)")
    parser.add_argument("--reasoning", action="store_true", help="show the prompt as reasoning is generated behind it")
    parser.add_argument(
        "--chat_template", metavar="FILE", help="show or compare untrained models under this one, a text or a file"
    )
    parser.add_argument("--orders", type=int, default=1, choices=(1, 6), help="orders of the options to average over")
    parser.add_argument("--limit", type=int, metavar="N", help="compare on N items only")
    parser.add_argument("--device", metavar="X", help="cpu, cuda or cuda:N (default: the GPU when there is one)")
    parser.add_argument("--json", type=new_file, metavar="OUT", help="write the comparison here, the answers included")
    return parser


def main(argv: list[str] | None = None) -> None:
    from src.console.tables import make_console

    arguments = make_parser().parse_args(argv)
    console = make_console()
    if arguments.lengths:
        if arguments.compare or not arguments.prompt:
            raise UserError("--lengths takes one prompt: python -m run.prompts korean+3shots --lengths")
        show_lengths(arguments, console)
    elif arguments.compare:
        if not arguments.runs or arguments.prompt:
            raise UserError("--compare takes the prompts itself, and needs at least one of --runs.")
        compare(arguments, console)
    elif arguments.prompt:
        show(arguments, console)
    else:
        console.print(listing(), soft_wrap=True)


# List


def listing() -> str:
    """Every prompt that the files make: a paragraph for each file, a line for each of its strategies."""
    lines = []
    for name in available():
        base = load_prompt(name)
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


def show(arguments: Namespace, console: Any) -> None:
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
        console.print(f"python -m run.prompts {arguments.prompt} --lengths", soft_wrap=True)
        return

    check_models(arguments.runs)
    with announced("loading transformers"):
        from src.model import load as models
        from src.runs.encoder import find_library, frozen_in, make_encoder

    name, recipe, folder = named(arguments.runs[0], arguments.chat_template)
    recipe = recipe.replace(prompt=arguments.prompt, reasoning=arguments.reasoning)
    library = find_library(prompt, arguments.data, arguments.reasoning)
    weights = models.weights_folder(folder) if folder else None
    encoder = make_encoder(recipe, prompt, weights, library, frozen_in(folder))
    for line in encoder.notes([item]):
        console.print(line, soft_wrap=True)
    (example,) = encoder.for_scoring([item])
    console.print(encoder.tokenizer.decode(list(example.ids)), soft_wrap=True)
    letters = zip("ABC", encoder.letter_ids or (), strict=True)
    end = [encoder.tokenizer.decode([id]) for id in example.ids[-LETTERS_SHOWN:]]
    console.print(f"\n{name}, prompt {prompt.name}, item {item.id}: {len(example.ids)} tokens", soft_wrap=True)
    console.print(counts_table(encoder, item))
    told = ", ".join(f"{letter} {id} {encoder.tokenizer.decode([id])!r}" for letter, id in letters)
    console.print(f"the letters are read behind {' '.join(map(repr, end))}\nas the tokens {told}", soft_wrap=True)
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


def counts_table(encoder: Any, item: Item) -> Any:
    from rich.table import Table

    from src.console.tables import Fitted

    table = Table("part", "tokens")
    for part, count in part_tokens(encoder, item).items():
        table.add_row(part, f"{count}")
    return Fitted(table)


def part_tokens(encoder: Any, item: Item) -> dict[str, int]:
    """Part → its tokens; a token belongs to the part in which it starts. The rest is the chat template's."""
    text = encoder.prompt_text(item)
    end = encoder.prompt.reasoned("") if encoder.reasoning else ""
    kinds = ["chat template"] * len(text) + ["bridge"] * len(end)

    def mark(words: str, part: str, start: int) -> int:
        place = text.find(words.strip(), start)
        if place >= 0 and words.strip():
            kinds[place : place + len(words.strip())] = [part] * len(words.strip())
        return max(place, start)

    messages = encoder.prompt.render(item, reasoning=encoder.reasoning).messages
    own = text.rfind(messages[-1]["content"])
    if len(messages) > 1:
        mark(messages[0]["content"], "system", 0)
    if encoder.library:
        first = encoder.prompt.render(encoder.library.choose(item)[0], reasoning=encoder.reasoning).messages[-1]
        start = text.find(first["content"])
        kinds[start:own] = ["examples"] * (own - start)
    place = own
    for part, words in encoder.prompt.parts(item, reasoning=encoder.reasoning):
        place = mark(words, part, place)
    found = [kinds[min(start, len(kinds) - 1)] for start in encoder.token_starts(item)]
    parts = ["system", "examples", *MARKS, "bridge", "chat template"]
    total = len(encoder.for_scoring([item])[0].ids)
    found += ["chat template"] * (total - len(found))  # a BOS of its own
    return {part: found.count(part) for part in parts if part in found}


def named(given: str, chat_template: str | None) -> tuple[str, Any, Path | None]:
    """`named_model`, an untrained model under another chat template when one is given."""
    name, recipe, folder = named_model(given)
    if chat_template is None:
        return name, recipe, folder
    if folder is not None:
        raise UserError(f"--chat_template: {given} is a trained run and keeps the template that it was trained with.")
    return name, recipe.replace(chat_template=template_text(chat_template, "--chat_template")), None


# Lengths


def show_lengths(arguments: Namespace, console: Any) -> None:
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


def print_lengths(gauges: Mapping[str, lengths.Gauge], splits: Iterable[str], prompt: str, console: Any) -> None:
    found = {name: [gauge.whole(split) for split in splits] for name, gauge in gauges.items()}
    console.print(lengths.table(gauges, found, f"Tokens of an item with prompt {prompt}"))
    if any(one.too_long for some in found.values() for one in some):
        console.print(lengths.ADVICE, soft_wrap=True)


# Compare


def compare(arguments: Namespace, console: Any) -> None:
    """One table a run: every prompt on the same items, each against the first."""
    if len(set(arguments.compare)) < len(arguments.compare):
        raise UserError("--compare: a prompt is named twice.")
    prompts = [load_prompt(name) for name in arguments.compare]
    items, path = load_data(arguments.data, arguments.split)
    refuse_unlabelled(items, path)
    check_models(arguments.runs)
    check_limit(arguments.limit)
    with announced("loading torch and transformers"):
        from src.model import load as models

    device = models.pick_device(arguments.device)
    chosen = [(given, *named(given, arguments.chat_template)) for given in arguments.runs]
    items = sample_items(items, arguments.limit, seed=0)
    # Every prompt must fit every model, before the first model is loaded.
    encoders = {
        given: [encoder_for(prompt, recipe, folder, arguments.data) for prompt in prompts]
        for given, _, recipe, folder in chosen
    }
    refuse_too_long(encoders, items, ORDERS[: arguments.orders])
    console.print(f"{len(items)} items of {path}, {counted(arguments.orders, 'order')} of the options")
    results = []
    for given, name, recipe, folder in chosen:
        network = models.load_run(folder or Path(), recipe, device, trained=folder is not None)
        rows = [score_prompt(network, encoder, items, ORDERS[: arguments.orders]) for encoder in encoders[given]]
        results.append({"run": name, "trained_with": trained_with(given), "prompts": rows})
        for row in rows:
            hits, first = row["right"], rows[0]["right"]
            row["gained"] = sum(one and not other for one, other in zip(hits, first, strict=True))
            row["lost"] = sum(other and not one for one, other in zip(hits, first, strict=True))
            row["p"] = mcnemar(row["gained"], row["lost"])
        console.print(comparison(results[-1]))
        del network
    console.print(
        "against first: items that this prompt alone (+), and the first alone (−) gets right; p: McNemar's exact test, "
        "two-sided, not corrected for how many prompts are compared. tokens: of a prompt, and the share of them that "
        "prompts with the same beginning save.",
        soft_wrap=True,
    )
    if arguments.json:
        given = {"path": path, "sha256": sha256(path), "ids": [item.id for item in items], "orders": arguments.orders}
        write_json(arguments.json, {"data": given, "runs": results})
        console.print(f"written: {arguments.json}")


def encoder_for(prompt: Prompt, recipe: Any, folder: Path | None, data: Path) -> Any:
    from src.model import load as model
    from src.runs.encoder import find_library, frozen_in, make_encoder

    recipe = recipe.replace(prompt=prompt.name, reasoning=False)
    weights = model.weights_folder(folder) if folder else None
    return make_encoder(recipe, prompt, weights, find_library(prompt, data), frozen_in(folder))


def refuse_too_long(encoders: Mapping[str, Sequence[Any]], items: Sequence[Item], orders: Sequence[str]) -> None:
    """One message for all prompts and models for which items are too long."""
    long = []
    for given, some in encoders.items():
        for encoder in some:
            tokens = lengths.count(encoder, items, answered=False, orders=orders)
            count = sum(one > encoder.context for one in tokens) if encoder.context else 0
            if count:
                long.append(
                    f"\n  {given} with {encoder.prompt.name}: {count} of {len(items)}, the longest has "
                    f"{max(tokens):,} tokens of {encoder.context:,}"
                )
    if long:
        raise UserError(
            f"--compare: items are too long for the context, and nothing is cut:{''.join(long)}\nLeave these out, or "
            "take fewer examples. Lengths in all splits: python -m run.prompts PROMPT --lengths"
        )


def score_prompt(network: Any, encoder: Any, items: Sequence[Item], orders: Sequence[str]) -> dict[str, Any]:
    from src.console.progress import stage
    from src.score import letters as scores
    from src.tree import rows as layouts

    started = time.monotonic()
    examples = encoder.for_scoring(items, orders)
    with stage(encoder.prompt.name, len(examples)) as bar:
        found = scores.score(network, examples, encoder.letter_ids, encoder.pad_id, update=bar.update)
    seconds = time.monotonic() - started
    answers = [row.prediction for row in found]
    worth = evaluate(items, answers)
    ids = [one.ids for one in examples]
    tokens = sum(map(len, ids))
    unique = sum(layouts.sizes(ids, layouts.Layout("tree", scores.GPU_SCORING, encoder.pad_id)))
    return {
        "prompt": encoder.prompt.name,
        "sha256": encoder.prompt.sha256,
        "correct": worth.correct,
        "accuracy": worth.accuracy,
        "interval": worth.interval,
        "tokens": tokens / len(examples),
        "shared": 1 - unique / tokens,
        "seconds": seconds,
        "answers": answers,
        "right": [item.label == answer for item, answer in zip(items, answers, strict=True)],
    }


def trained_with(given: str) -> str | None:
    folder = find_run(given)
    return read_run(folder).prompt.name if folder else None


def comparison(result: dict[str, Any]) -> Any:
    from rich.table import Table

    from src.console.tables import Fitted

    title = result["run"] + (f", trained with {result['trained_with']}" if result["trained_with"] else "")
    table = Table("prompt", "accuracy", "95 %", "against first", "p", "tokens", "seconds", title=title)
    for place, row in enumerate(result["prompts"]):
        low, high = row["interval"]
        p = f"{row['p']:.3f}" if row["p"] >= 0.001 else "< 0.001"
        against = ["–", "–"] if place == 0 else [f"+{row['gained']} −{row['lost']}", p]
        costs = [f"{row['tokens']:.0f}, {row['shared']:.0%}", f"{row['seconds']:.1f}"]
        table.add_row(row["prompt"], f"{row['accuracy']:.1%}", f"{100 * low:.0f}–{100 * high:.0f}", *against, *costs)
    return Fitted(table)


if __name__ == "__main__":
    sys.exit(run_main(main))
