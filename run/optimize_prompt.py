"""Search for a better prompt with TextGrad: a language model criticises the system text and writes a new one.

    transformers serve Qwen/Qwen2.5-7B-Instruct --port 8000
    python -m run.optimize_prompt --run polar --engine http://localhost:8000/v1 --engine_model Qwen/Qwen2.5-7B-Instruct
    python -m run.optimize_prompt --run Qwen/Qwen2-7B-Instruct --prompt korean+cot --engine Qwen/Qwen2.5-7B-Instruct

--run is the model under test: a trained run, by name or folder, or an untrained model. --engine is the critic: any
OpenAI-compatible endpoint (vLLM, Ollama, transformers serve), or a model that is loaded here. The items of the labelled
split are divided by dialogue: the text is criticised on one part, and a new prompt must win on the other, held-out
part. The test split is never read. Every step is kept in --out, and the same command goes on where it stopped.
"""

import dataclasses
import difflib
import functools
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src import task
from src.console.cli import Parser, announced, new_folder, run_main
from src.console.words import counted
from src.data import DATA, Item, load_data, sha256
from src.files.locks import lock_folder
from src.files.paths import RESULTS, find_run
from src.files.writing import write_json, write_text
from src.model import trust
from src.model.recipes import Recipe
from src.prompt.prompts import Prompt, load_prompt, parse_prompt
from src.runs.inputs import check_models, read_run, sample_items
from src.runs.versions import made_with
from src.score.item_scores import ItemScores
from src.search.addresses import masked
from src.search.calls import AnswerSettings, Ask, Calls
from src.search.engine import Engine
from src.search.folder import ASKED, Step, check_folder, draw_accuracy, last_kept, parse, read_steps
from src.search.record import SearchRecord
from src.search.settings import Scorer, Search, SearchSettings
from src.worth.metrics import wilson

if TYPE_CHECKING:
    import torch
    from rich.console import Console

NOT_FIXED = ("steps", "max_calls")
"""Settings that may change when a search resumes."""
FREE_BEFORE_CALLS = ("engine", "engine_model", "temperature")
"""Settings that may change until the critic has answered, so that a wrong address can be corrected."""


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.optimize_prompt")
    parser.add_argument("--run", required=True, metavar="RUN", help="the model under test")
    parser.add_argument(
        "--prompt", metavar="NAME", help="where to start (default: what the run was trained with, or entry)"
    )
    add_critic_flags(parser)
    add_search_flags(parser)
    parser.add_argument(
        "--split", default="dev", choices=("train", "dev"), help="labelled items (default: %(default)s)"
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of data_SPLIT.json")
    task.add_flag(parser)
    trust.add_flag(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="only N items, to try it out")
    parser.add_argument("--out", type=new_folder, metavar="DIR", help="default: resource/results/optimized-RUN-PROMPT")
    parser.add_argument("--device", metavar="X", help="cpu, cuda or cuda:N (default: the GPU when there is one)")
    return parser


def add_critic_flags(parser: Parser) -> None:
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--engine", required=True, metavar="URL_OR_MODEL", help="the critic")
    add("--engine_model", metavar="NAME", help="the model's name at the endpoint")
    add(
        "--key_env",
        metavar="NAME",
        help="environment variable with the endpoint's key; it is written nowhere "
        "(default: OPENAI_API_KEY for an endpoint elsewhere, none on this machine)",
    )
    add("--send_items", action="store_true", help="allow items to be sent to an endpoint that is not on this machine")
    add("--temperature", type=float, default=0.7, metavar="X", help=f"the critic's {default}")
    add("--answer_tokens", type=int, default=2048, metavar="N", help=f"longest answer of the critic {default}")
    add(
        "--answer_seconds",
        type=float,
        default=600.0,
        metavar="S",
        help="longest wait for an answer of an endpoint (default: %(default)g)",
    )


def add_search_flags(parser: Parser) -> None:
    add, usual, default = parser.add_argument, SearchSettings(), "(default: %(default)s)"
    add("--steps", type=int, default=usual.steps, metavar="N", help="default: %(default)s")
    add(
        "--batch_size",
        type=int,
        default=usual.batch_size,
        metavar="N",
        help=f"items that the critic reads a step {default}",
    )
    add("--categories", action="store_true", help="also change the sentences of the categories")
    add("--alpha", type=float, default=usual.alpha, metavar="P", help=f"keep a prompt at p up to this {default}")
    add("--margin", type=float, metavar="X", help="or keep it when it gets this share more of them right")
    add(
        "--held_out",
        type=float,
        default=usual.held_out,
        metavar="X",
        help=f"share of the dialogues held out {default}",
    )
    add(
        "--max_calls",
        type=int,
        default=usual.max_calls,
        metavar="N",
        help=f"calls of the critic, all sessions {default}",
    )
    add("--max_tokens", type=int, default=usual.max_tokens, metavar="N", help=f"longest system text {default}")
    add("--seed", type=int, default=usual.seed, metavar="N", help="default: %(default)s")


def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)

    from src.console.tables import make_console

    console = make_console(soft_wrap=True)
    names = [field.name for field in dataclasses.fields(SearchSettings)]
    settings = SearchSettings(**{name: getattr(arguments, name) for name in names})
    engine = engine_of(arguments)
    engine.check()
    items, path = labelled_items(arguments)
    check_models([arguments.run])
    if arguments.prompt:
        load_prompt(arguments.prompt)
    with announced("loading torch and transformers"):
        from src.model.load import pick_device
        from src.runs.inputs import named_model
        from src.search.prompt_search import run_search, split

    learn, held = split(items, settings)
    name, recipe, weights = named_model(arguments.run)
    start = start_prompt(arguments, recipe)
    out = arguments.out or RESULTS / f"optimized-{Path(name.split()[0]).name}-{start.name}"
    with lock_folder(out):
        calls_file = out / "calls.jsonl"
        made = Calls(lambda message, system: "", calls_file, settings.max_calls).count
        asked = asked_of(arguments, settings, start, path, len(items))
        check_folder(out, asked, free=() if made else FREE_BEFORE_CALLS)

        # The critic, as far as it can be tried before anything is loaded
        endpoint = engine.endpoint(report_retry) if engine.is_endpoint else None
        if endpoint and made < settings.max_calls and len(read_steps(out)) <= settings.steps:
            endpoint.check()
        write_json(out / ASKED, asked)

        # The model under test, the critic, the search
        device = pick_device(arguments.device)
        score, count_tokens = model_under_test(recipe, weights, start, arguments.data, device)
        calls = Calls(endpoint or load_ask(engine, device), calls_file, settings.max_calls)
        console.print(
            f"{name}, prompt {start.name}: {len(learn)} items of {path} to learn from, {len(held)} held out; at most "
            f"{counted(settings.steps, 'step')} and {counted(settings.max_calls, 'call')}, {calls.count} of them made"
        )
        search = Search(settings, start, learn, held, score, calls, count_tokens, out)
        steps, ended = run_search(search, lambda step: console.print(step_line(step)))

        difference = write_results(search, steps)
        write_record(search, steps, ended, asked, path)
        print_results(console, search, steps, ended, difference)
        prompts = f"{arguments.prompt or start.name} {out / 'prompt.yaml'}"
        console.print(
            f"next: python -m run.prompts --compare {prompts} --runs {arguments.run}{trust.words(recipe)}{task.flag()}"
        )


def engine_of(arguments: Namespace) -> Engine:
    answers = AnswerSettings(arguments.temperature, arguments.answer_tokens, arguments.seed, arguments.answer_seconds)
    return Engine(arguments.engine, arguments.engine_model, arguments.key_env, arguments.send_items, answers)


def labelled_items(arguments: Namespace) -> tuple[list[Item], Path]:
    """The items of the split, or as many as --limit asks for, and their file."""
    items, path = load_data(arguments.data, arguments.split, all_labelled=True)
    return sample_items(items, arguments.limit, arguments.seed), path


def start_prompt(arguments: Namespace, recipe: Recipe) -> Prompt:
    if arguments.prompt:
        return load_prompt(arguments.prompt)
    folder = find_run(arguments.run)
    if folder:
        return parse_prompt(read_run(folder).prompt.text, f"{folder}: prompt")
    return load_prompt(recipe.prompt)


def asked_of(arguments: Namespace, settings: SearchSettings, start: Prompt, path: Path, items: int) -> dict[str, Any]:
    """Settings that must be the same for a search to resume."""
    return {
        "run": arguments.run,
        "start": start.sha256,
        "task": task.current().sha256,
        "data_sha256": sha256(path),
        "items": items,
        "engine": masked(arguments.engine),
        "engine_model": arguments.engine_model,
        "temperature": arguments.temperature,
        **{key: value for key, value in dataclasses.asdict(settings).items() if key not in NOT_FIXED},
    }


def report_retry(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def load_ask(engine: Engine, device: "torch.device") -> Ask:
    from src.search.local_critic import load_critic

    return load_critic(engine.name, device, engine.answers)


def model_under_test(
    recipe: Recipe, weights: Path | None, start: Prompt, data: Path, device: "torch.device"
) -> tuple[Scorer, Callable[[str], int]]:
    """(scores items with a prompt, counts the tokens of a text)."""
    from src.model.load import load_run, weights_folder
    from src.runs.encoder import find_library, frozen_in, make_encoder
    from src.score.letters import LetterScorer

    network = load_run(weights or Path(), recipe, device, trained=weights is not None)
    kept = weights_folder(weights) if weights else None
    library = find_library(start, data)
    plain = recipe.replace(reasoning=False)
    frozen = frozen_in(weights)
    tokenizer = make_encoder(plain, start, kept, library, frozen).tokenizer

    # After another prompt the letters may be other tokens.
    scorers = functools.cache(functools.partial(LetterScorer, network))

    def scorer(prompt: Prompt, some: Sequence[Item]) -> list[ItemScores]:
        encoder = make_encoder(plain, prompt, kept, library, frozen)
        examples = encoder.for_scoring(some)
        return scorers(encoder.letter_ids or (), encoder.pad_id).score(examples).items

    return scorer, lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def write_results(search: Search, steps: Sequence[Step]) -> str:
    """Writes the best prompt, its difference from the start, which is returned, and the picture."""
    start, out = search.start, search.folder
    best = best_prompt(search, steps)
    write_text(out / "prompt.yaml", best.text)
    before, after = start.text, dataclasses.replace(best, name=start.name).text
    # Lines end with "\n" alone: a text may hold U+2028, at which splitlines would cut it.
    old, new = ([f"{line}\n" for line in text.removesuffix("\n").split("\n")] for text in (before, after))
    difference = "".join(difflib.unified_diff(old, new, f"{start.name}.yaml", "prompt.yaml"))
    write_text(out / "prompt.diff", difference)
    draw_accuracy(steps, out / "accuracy.png")
    return difference


def best_prompt(search: Search, steps: Sequence[Step]) -> Prompt:
    return dataclasses.replace(parse(last_kept(steps).prompt), name=search.folder.name)


def write_record(search: Search, steps: Sequence[Step], ended: str, asked: dict[str, Any], path: Path) -> None:
    settings, start, last, calls = search.settings, search.start, last_kept(steps), search.calls
    SearchRecord(
        search=asked | {"steps": settings.steps, "max_calls": settings.max_calls},
        data={"path": path, "learned_from": ids(search.learn), "held_out": ids(search.held)},
        start={"name": start.name, "sha256": start.sha256, "accuracy": steps[0].accuracy},
        prompt={"step": last.number, "sha256": best_prompt(search, steps).sha256, "accuracy": last.accuracy},
        steps=len(steps) - 1,
        kept=[step.number for step in steps if step.kept and step.number],
        calls=calls.count,
        ended=ended,
        **made_with(),
    ).save(search.folder)


def print_results(console: "Console", search: Search, steps: Sequence[Step], ended: str, difference: str) -> None:
    console.print(f"\nended: {ended}; {counted(search.calls.count, 'call')}\n")
    console.print(difference or "No new prompt was kept.\n")
    console.print(f"{accuracy_words('the start', steps[0])}\n{accuracy_words('the end', last_kept(steps))}")
    console.print(
        "The held-out items chose the prompt, which flatters the end somewhat; other items tell what it is worth."
    )
    console.print(f"written: {search.folder / 'prompt.yaml'}, prompt.diff, accuracy.png and all steps beside it")


def ids(items: Sequence[Item]) -> list[str]:
    return [item.id for item in items]


def step_line(step: Step) -> str:
    found = step.accuracy
    share = f"held-out accuracy {found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}]" if found else "no held-out accuracy"
    verdict = "start" if step.number == 0 else "kept" if step.kept else "refused"
    return f"step {step.number}, {verdict}: {step.reason}; {share}; {counted(step.calls, 'call')}, {step.seconds:.1f} s"


def accuracy_words(what: str, step: Step) -> str:
    right = step.right["held"]
    assert right is not None, "a step that was kept has been scored"
    low, high = wilson(sum(right), len(right))
    share = f"{sum(right) / len(right):.1%} (95 % {low:.1%} to {high:.1%})"
    return f"{what}: {sum(right)}/{len(right)} held-out items, {share}"


if __name__ == "__main__":
    sys.exit(run_main(main, resumes=True))
