"""Search for a better prompt with TextGrad: a language model criticises the system text and writes a new one.

    transformers serve Qwen/Qwen2.5-7B-Instruct --port 8000
    python -m run.optimize_prompt --run polar --engine http://localhost:8000/v1 --engine_model Qwen/Qwen2.5-7B-Instruct
    python -m run.optimize_prompt --run Qwen/Qwen2-7B-Instruct --prompt korean+cot --engine Qwen/Qwen2.5-7B-Instruct

--run is the model under test: a trained run, by name or folder, or an untrained model. --engine is the critic: any
OpenAI-compatible endpoint (vLLM, Ollama, transformers serve), or a model that is loaded here. The items of the labelled
split are parted by dialogue: on one part the text is criticised, on the other, held out, a new prompt has to win. The
test split is never read. Every step is kept in --out, and the same command goes on where it stopped.
"""

import dataclasses
import difflib
import math
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src.console.cli import Parser, UserError, announced, new_folder, run_main
from src.console.words import counted
from src.data import DATA, Item, load_data, sha256
from src.files.paths import RESULTS, find_run
from src.files.writing import write_json, write_text
from src.prompt.prompts import Prompt, load_prompt, parse_prompt
from src.runs.inputs import check_limit, check_models, named_model, read_run, refuse_unlabelled, sample_items
from src.runs.versions import made_with
from src.search.addresses import Address, is_local, looks_like_address, masked
from src.search.record import SearchRecord
from src.worth.metrics import wilson

NOT_FIXED = ("steps", "max_calls")
"""Settings that may change when a search goes on."""
FREE_BEFORE_CALLS = ("engine", "engine_model", "temperature")
"""Settings that may change until the critic has answered: a wrong address can be mended."""


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.optimize_prompt")
    parser.add_argument("--run", required=True, metavar="RUN", help="the model under test")
    parser.add_argument(
        "--prompt", metavar="NAME", help="where to start (default: what the run was trained with, or entry)"
    )
    parser.add_argument("--engine", required=True, metavar="URL_OR_MODEL", help="the critic")
    parser.add_argument("--engine_model", metavar="NAME", help="the model's name at the endpoint")
    parser.add_argument(
        "--key_env",
        metavar="NAME",
        help="environment variable with the endpoint's key; it is written nowhere (default: OPENAI_API_KEY for an "
        "endpoint elsewhere, none on this machine)",
    )
    parser.add_argument(
        "--send_items", action="store_true", help="allow items to be sent to an endpoint that is not on this machine"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.7, metavar="X", help="the critic's (default: %(default)s)"
    )
    parser.add_argument(
        "--answer_tokens",
        type=int,
        default=2048,
        metavar="N",
        help="longest answer of the critic (default: %(default)s)",
    )
    parser.add_argument(
        "--answer_seconds",
        type=float,
        default=600.0,
        metavar="S",
        help="longest wait for an answer of an endpoint (default: %(default)g)",
    )
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--batch_size",
        type=int,
        default=8,
        metavar="N",
        help="items that the critic reads a step (default: %(default)s)",
    )
    parser.add_argument("--categories", action="store_true", help="also change the sentences of the categories")
    parser.add_argument(
        "--alpha", type=float, default=0.05, metavar="P", help="keep a prompt at p up to this (default: %(default)s)"
    )
    parser.add_argument(
        "--margin", type=float, metavar="X", help="or keep it when it gets this share more of them right"
    )
    parser.add_argument(
        "--held_out",
        type=float,
        default=0.5,
        metavar="X",
        help="share of the dialogues held out (default: %(default)s)",
    )
    parser.add_argument(
        "--max_calls",
        type=int,
        default=60,
        metavar="N",
        help="calls of the critic, all sessions (default: %(default)s)",
    )
    parser.add_argument(
        "--max_tokens", type=int, default=768, metavar="N", help="longest system text (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--split", default="dev", choices=("train", "dev"), help="labelled items (default: %(default)s)"
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of data_SPLIT.json")
    parser.add_argument("--limit", type=int, metavar="N", help="only N items, to try it out")
    parser.add_argument("--out", type=new_folder, metavar="DIR", help="default: resource/results/optimized-RUN-PROMPT")
    parser.add_argument("--device", metavar="X", help="cpu, cuda or cuda:N (default: the GPU when there is one)")
    return parser


def main(argv: list[str] | None = None) -> None:
    from src.console.tables import make_console
    from src.search import critics
    from src.search import textgrad as searching

    arguments = make_parser().parse_args(argv)
    console = make_console(soft_wrap=True)
    fields = [field.name for field in dataclasses.fields(searching.Search)]
    settings = searching.Search(**{name: getattr(arguments, name) for name in fields})
    check_engine(arguments)
    items, path = load_data(arguments.data, arguments.split)
    refuse_unlabelled(items, path)
    check_models([arguments.run])
    if arguments.prompt:
        load_prompt(arguments.prompt)
    check_limit(arguments.limit)
    with announced("loading torch and transformers"):
        from src.model import load as models
        from src.runs import encoder as encoders

    items = sample_items(items, arguments.limit, settings.seed)
    learn, held = searching.split(items, settings)
    name, recipe, weights = named_model(arguments.run)
    start = start_prompt(arguments, recipe)
    out = arguments.out or RESULTS / f"optimized-{Path(name.split()[0]).name}-{start.name}"
    asked = {
        "run": arguments.run,
        "start": start.sha256,
        "data_sha256": sha256(path),
        "items": len(items),
        "engine": masked(arguments.engine),
        "engine_model": arguments.engine_model,
        "temperature": arguments.temperature,
        **{key: value for key, value in dataclasses.asdict(settings).items() if key not in NOT_FIXED},
    }
    calls_file = out / "calls.jsonl"
    made = critics.Calls(lambda message, system: "", calls_file, settings.max_calls).count
    check_folder(out, asked, made)

    # The critic, as far as it can be tried before anything is loaded
    remote = make_endpoint(arguments, settings.seed) if looks_like_address(arguments.engine) else None
    if remote and made < settings.max_calls and len(searching.read_steps(out)) <= settings.steps:
        remote.check()
    write_json(out / "search.json", asked)

    # The model under test
    device = models.pick_device(arguments.device)
    network = models.load_run(weights or Path(), recipe, device, trained=weights is not None)
    kept = models.weights_folder(weights) if weights else None
    library = encoders.find_library(start, arguments.data)
    plain = recipe.replace(reasoning=False)
    frozen = encoders.frozen_in(weights)
    tokenizer = encoders.make_encoder(plain, start, kept, library, frozen).tokenizer

    def scorer(prompt: Prompt, some: Any) -> Any:
        from src.score.letters import score

        encoder = encoders.make_encoder(plain, prompt, kept, library, frozen)
        examples = encoder.for_scoring(some)
        return score(network, examples, encoder.letter_ids or (), encoder.pad_id)

    # The search
    ask = remote or make_ask(arguments, settings.seed, device)
    calls = critics.Calls(ask, calls_file, settings.max_calls)
    console.print(
        f"{name}, prompt {start.name}: {len(learn)} items of {path} to learn from, {len(held)} held out; at most "
        f"{counted(settings.steps, 'step')} and {counted(settings.max_calls, 'call')}, {calls.count} of them made"
    )
    steps, ended = searching.search(
        start,
        learn,
        held,
        scorer,
        calls,
        settings,
        out,
        lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
        lambda step: console.print(step_line(step)),
    )

    # What it leaves
    last = next(step for step in reversed(steps) if step.kept)
    best = dataclasses.replace(searching.parse(last.prompt), name=out.name)
    write_text(out / "prompt.yaml", best.text)
    before, after = start.text, dataclasses.replace(best, name=start.name).text
    # Lines end with "\n" alone: a text may hold U+2028, at which splitlines would part it.
    old, new = ([f"{line}\n" for line in text.removesuffix("\n").split("\n")] for text in (before, after))
    difference = "".join(difflib.unified_diff(old, new, f"{start.name}.yaml", "prompt.yaml"))
    write_text(out / "prompt.diff", difference)
    searching.plot(steps, out / "accuracy.png")
    SearchRecord(
        search=asked | {"steps": settings.steps, "max_calls": settings.max_calls},
        data={"path": path, "learned_from": ids(learn), "held_out": ids(held)},
        start={"name": start.name, "sha256": start.sha256, "accuracy": steps[0].accuracy},
        prompt={"step": last.number, "sha256": best.sha256, "accuracy": last.accuracy},
        steps=len(steps) - 1,
        kept=[step.number for step in steps if step.kept and step.number],
        calls=calls.count,
        ended=ended,
        **made_with(),
    ).save(out)
    console.print(f"\nended: {ended}; {counted(calls.count, 'call')}\n")
    console.print(difference or "No new prompt was kept.\n")
    console.print(f"{accuracy_words('the start', steps[0])}\n{accuracy_words('the end', last)}")
    console.print(
        "The held-out items chose the prompt, which flatters the end somewhat; other items tell what it is worth."
    )
    console.print(f"written: {out / 'prompt.yaml'}, prompt.diff, accuracy.png and all steps beside it")
    names = f"{arguments.prompt or start.name} {out / 'prompt.yaml'}"
    console.print(f"next: python -m run.prompts --compare {names} --runs {arguments.run}")


def check_engine(arguments: Namespace) -> None:
    """UserError for what can be known of the critic without asking it."""
    if arguments.answer_tokens < 1 or not 0 < arguments.answer_seconds < math.inf or not arguments.temperature >= 0:
        raise UserError(
            f"--answer_tokens {arguments.answer_tokens}, --answer_seconds {arguments.answer_seconds:g}, --temperature "
            f"{arguments.temperature:g}: allowed: 1 or more, more than 0, 0 or more."
        )
    if not looks_like_address(arguments.engine):
        return
    address = Address(arguments.engine)
    if not arguments.engine_model:
        raise UserError(f"--engine {address} needs --engine_model, the name of the model there.")
    local = is_local(arguments.engine)
    # An address may hold a password, or a key in its query; then no other key is needed.
    needed = arguments.key_env is not None or not (local or address.secrets)
    if needed and not os.environ.get(key_name(arguments)):
        where = "on" if local else "not on"
        raise UserError(
            f"--engine {address} is {where} this machine, and {key_name(arguments)} holds no key for it. Set it, "
            "or name another variable with --key_env."
        )
    if not local and not arguments.send_items:
        raise UserError(
            f"--engine {address} is not on this machine: dialogues and options would be sent there. Where the "
            "data's terms allow it, say so with --send_items; the official corpus may not be passed on."
        )


def key_name(arguments: Namespace) -> str:
    return arguments.key_env or "OPENAI_API_KEY"


def wish_of(arguments: Namespace, seed: int) -> Any:
    from src.search.critics import Wish

    return Wish(arguments.temperature, arguments.answer_tokens, seed, arguments.answer_seconds)


def make_endpoint(arguments: Namespace, seed: int) -> Any:
    from src.search.critics import Endpoint

    # A server on this machine gets no key that was not meant for it.
    meant = arguments.key_env or not is_local(arguments.engine)
    key = os.environ.get(key_name(arguments)) if meant else None

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    return Endpoint(arguments.engine, arguments.engine_model, key, wish_of(arguments, seed), tell)


def make_ask(arguments: Namespace, seed: int, device: Any) -> Any:
    from src.search.critics import in_process

    return in_process(arguments.engine, device, wish_of(arguments, seed))


def start_prompt(arguments: Namespace, recipe: Any) -> Prompt:
    if arguments.prompt:
        return load_prompt(arguments.prompt)
    folder = find_run(arguments.run)
    if folder:
        return parse_prompt(read_run(folder).prompt.text, f"{folder}: prompt")
    return load_prompt(recipe.prompt)


def check_folder(out: Path, asked: dict[str, Any], made: int) -> None:
    """UserError when `out` holds another search, or something else. made: calls so far."""
    import json

    file = out / "search.json"
    if not file.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"--out {out} holds something else than a search; name a new folder.")
        return
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
        there["engine"] = masked(there["engine"])  # older versions stored it as it was given
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is damaged ({error!r}). Delete {out}, or name another --out.") from error
    free = () if made else FREE_BEFORE_CALLS
    differing = [key for key, value in asked.items() if there.get(key) != value and key not in free]
    if differing:
        told = ", ".join(f"{key} was {there.get(key)!r}, now {asked[key]!r}" for key in differing)
        raise UserError(f"{out} holds another search: {told}. Delete it, or name another --out.")


def ids(items: list[Item]) -> list[str]:
    return [item.id for item in items]


def step_line(step: Any) -> str:
    found = step.accuracy
    share = f"held-out accuracy {found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}]" if found else "no held-out accuracy"
    verdict = "start" if step.number == 0 else "kept" if step.kept else "refused"
    return f"step {step.number}, {verdict}: {step.reason}; {share}; {counted(step.calls, 'call')}, {step.seconds:.1f} s"


def accuracy_words(what: str, step: Any) -> str:
    right = step.right["held"]
    low, high = wilson(sum(right), len(right))
    share = f"{sum(right) / len(right):.1%} (95 % {low:.1%} to {high:.1%})"
    return f"{what}: {sum(right)}/{len(right)} held-out items, {share}"


if __name__ == "__main__":
    sys.exit(run_main(main, resumes=True))
