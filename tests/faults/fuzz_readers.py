"""Every reader of a file that a user may have from somebody else, with files that are nearly sound.

`READERS` maps a reader's name to a function that makes one file, reads it, and uses what was read as commands do. It
may raise UserError, as the reader's caller would show it, and nothing else.
"""

import contextlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from src import task
from src.console.cli import UserError
from src.console.terminal import CONTROL, IN_NAMES, REPLACING, harmless, name_problem
from src.data import dump_items, load_items, oddity_note, parse_items, predictions
from src.files.reading import load_json, read_json
from src.files.writing import write_json, write_text
from src.files.yaml_files import load_yaml
from src.model.backbones import BACKBONES, backbones
from src.model.recipe_files import load_recipe
from src.model.recipes import FIELDS, make_recipe
from src.plan.known import known_base
from src.plan.lengths import context_of
from src.prepare import splits
from src.prompt.chat import Chat, Frozen, Rendering
from src.prompt.prompts import combinations, load_prompt, parse_prompt
from src.runs.record import Record
from src.runs.run_list import differing, list_runs
from src.score.item_scores import ItemScores, read_scores, write_scores
from src.search.addresses import Address
from src.search.calls import Calls
from src.search.endpoint import UnusableAnswer, read_answer
from src.search.folder import Step, check_folder, last_kept, read_steps, write_step
from src.vote.ballots import read_sources
from src.vote.calibration import calibrate
from src.vote.submission import submission_problems
from src.vote.voters import Request
from tests import toys
from tests.conftest import make_item
from tests.faults.fuzz_changes import (
    JSON_WORDS,
    SLOW_WORDS,
    TEMPLATE_WORDS,
    VALUES,
    YAML_WORDS,
    Pick,
    as_json,
    changed_bytes,
    changed_text,
    changed_value,
    json_file,
    one_of,
    yaml_file,
    zip_file,
)

Reader = Callable[[Pick, Path], None]
"""(choices, an empty folder) → reads a file that is nearly sound."""

RECIPE = {
    "name": "mine",
    "backbone": "polar",
    "model_id": "x2bee/POLAR-14B-v0.2",
    "method": "lora",
    "lr": 2e-5,
    "batch_size": 4,
    "epoch": 3,
    "warmup_steps": 0.1,
    "lora_dropout": 0.05,
    "chat_template": "{{ messages[0].content }}\n",
    "trust_remote_code": False,
    "eval_steps": 10,
    "prompt": "entry",
    "seed": 42,
}
RESULT = {
    "items": 4,
    "orders": 1,
    "seconds": 1.5,
    "data": "d.json",
    "accuracy": 0.5,
    "correct": 2,
    "interval": [0.1, 0.9],
}
RECORD = {
    "run": "mine",
    "recipe": RECIPE,
    "prompt": {"name": "entry", "sha256": "a", "text": "user: x"},
    "template": {"source": "recipe", "system_turn": "own", "sha256": "a", "date": "2024-01-02", "arguments": {}},
    "base_revision": "abc",
    "versions": {"torch": "2.0"},
    "commit": "abc",
    "data": {"train": {"path": "d.json", "sha256": "a", "items": 8}},
    "trainable_parameters": 10,
    "parameters": 100,
    "training": {"steps": 3},
    "device": "cpu",
    "weights": "other",
    "splits": {"dev": RESULT},
    "splits_6orders": {
        "dev": {**RESULT, "rule": "sum", "voters": [{"run": "a"}], "missing": {}, "decided_by": {"sum": 4}}
    },
    "letters": {"A": 5},
    "peak_memory_bytes": 5,
    "seconds": 1.5,
}
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "text_config": {"max_position_embeddings": 5},
}
TEMPLATES = (toys.LLAMA3, toys.KOGEMMA, toys.SOLAR, toys.EEVE, toys.CHATML)
ITEMS = [make_item(number) for number in range(3)]


@cache
def _parsed() -> tuple[Any, ...]:
    return tuple(parse_items(as_json(ITEMS), "items")[0])


@cache
def _yaml_of(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def recipe(pick: Pick, folder: Path) -> None:
    path = folder / "mine.yaml"
    path.write_bytes(yaml_file(pick, RECIPE))
    _use_recipe(load_recipe(path, {"seed": "7"} if pick(3) == 0 else None), folder)


def flags(pick: Pick, folder: Path) -> None:
    name = one_of(pick, list(FIELDS))
    value = one_of(pick, VALUES) if pick(2) else changed_text(pick, str(RECIPE.get(name, "1")), YAML_WORDS)
    _use_recipe(make_recipe({**RECIPE, name: value}, "command line"), folder)


def _use_recipe(found: Any, folder: Path) -> None:
    assert load_recipe(_written(folder / "again.yaml", found.dump())) == found
    assert not IN_NAMES.search(found.name) and (folder / found.name).parent == folder
    write_json(folder / "r.json", {"recipe": vars(found)})


def _written(path: Path, text: str) -> Path:
    write_text(path, text)
    return path


def prompt(pick: Pick, folder: Path) -> None:
    words = SLOW_WORDS if pick(100) == 0 else TEMPLATE_WORDS if pick(2) else YAML_WORDS
    seeds = [yaml.safe_load(toys.SHORT), _yaml_of(Path("resource/prompts/korean.yaml"))]
    path = folder / "mine.yaml"
    path.write_bytes(yaml_file(pick, one_of(pick, seeds), words))
    name = one_of(pick, combinations(path)[:40]) if pick(4) == 0 else str(path)
    found = load_prompt(name)
    for item in _parsed():
        found.render(item).messages[-1]["content"].encode()
    assert parse_prompt(found.text, "again", found.name).sha256 == found.sha256


def prompt_name(pick: Pick, folder: Path) -> None:
    load_prompt(changed_text(pick, "korean+persona+3shots", (*YAML_WORDS, "+", "+9shots", "+" + "9" * 5000 + "shots")))


def chat_template(pick: Pick, folder: Path) -> None:
    words = SLOW_WORDS if pick(100) == 0 else TEMPLATE_WORDS
    text = one_of(pick, TEMPLATES)
    for _ in range(1 + pick(3)):
        text = changed_text(pick, text, words)
    kept = changed_value(pick, {"source": "recipe", "date": "2024-01-02", "arguments": {"enable_thinking": False}})
    frozen = None
    if pick(3) == 0 and isinstance(kept, dict):
        try:
            facts = Record.parse({"template": kept}).template
        except ValueError as error:  # as the contract of `parse` is
            raise UserError(str(error)) from error
        frozen = Frozen(facts.source, facts.date, facts.arguments)
    chat = Chat(toys.tokenizer("qwen2it"), "qwen2it", Rendering(text, override=True, frozen=frozen))
    chat.render([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]).encode()
    chat.notes(True)


def task_file(pick: Pick, folder: Path) -> None:
    path = folder / "task.yaml"
    path.write_bytes(yaml_file(pick, _yaml_of(Path("resource/task.yaml"))))
    found = task.load_task(path)
    assert found.sha256 and found.file_order


def backbone_table(pick: Pick, folder: Path) -> None:
    path = folder / "backbones.yaml"
    whole = _yaml_of(Path(BACKBONES))
    path.write_bytes(yaml_file(pick, {name: whole[name] for name in list(whole)[:2]}))
    for one in backbones.__wrapped__(path).values():
        assert isinstance(one.expected_config, dict)


def scores(pick: Pick, folder: Path) -> None:
    orders = task.current().orders(one_of(pick, (1, 3, 6)))
    sound = [ItemScores(f"i{n}", orders, tuple((1.5, 0.25, -n) for _ in orders)) for n in range(3)]
    path = folder / "scores_dev.jsonl"
    write_scores(path, sound)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_bytes(json_file(pick, lines, lines=True))
    for one in read_scores(path):
        f"{one.id} {one.margin:.3f} {one.prediction}".encode()


def record(pick: Pick, folder: Path) -> None:
    path = folder / "record.json"
    path.write_bytes(json_file(pick, RECORD))
    found = Record.load(folder)
    write_json(folder / "again.json", found.as_json())
    assert Record.read(folder / "again.json").as_json() == found.as_json()
    assert found.weights_in(folder).parent == folder.parent
    for result in found.splits.values():
        f"{result.accuracy or 0:.3f} {result.seconds or 0:.1f}".encode()
    if found.settings is not None:
        assert found.pinned_recipe.name is not None


def run_list(pick: Pick, folder: Path) -> None:
    for name, content in (("a", json_file(pick, RECORD)), ("b", b"{")):
        (folder / name).mkdir()
        (folder / name / "recipe.yaml").write_bytes(yaml_file(pick, RECIPE))
        (folder / name / "record.json").write_bytes(content)
    differing(list_runs(folder))


def items(pick: Pick, folder: Path) -> None:
    path = folder / "data_train.json"
    content = json_file(pick, ITEMS, lines=pick(4) == 0)
    with contextlib.suppress(UnicodeError):
        content = content.decode().encode(one_of(pick, ("utf-8", "utf-8", "cp949", "utf-16", "utf-8-sig", "utf-32-be")))
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        oddity_note(path)
    found = load_items(path)
    write_text(folder / "out.json", dump_items(predictions(found, [0] * len(found))))
    assert [one.id for one in load_items(folder / "out.json")] == [one.id for one in found]


def submission(pick: Pick, folder: Path) -> None:
    answered = predictions(_parsed(), [0, 1, 2])
    "\n".join(submission_problems(json_file(pick, answered), _parsed())).encode(errors=REPLACING)


def votes(pick: Pick, folder: Path) -> None:
    data = folder / "data_dev.json"
    write_text(data, dump_items(ITEMS))
    path = folder / one_of(pick, ("a.json", "a.jsonl"))
    path.write_bytes(json_file(pick, predictions(_parsed(), [0, 1, 2]), lines=path.suffix == ".jsonl"))
    read_sources([str(path)], list(_parsed()), data, "dev", folder)


def decisions(pick: Pick, folder: Path) -> None:
    """Those of a vote beside its predictions, and what they are worth."""
    data, sound = folder / "data_dev.json", list(_parsed())
    write_text(data, dump_items(ITEMS))
    write_text(folder / "predictions_dev.json", dump_items(predictions(sound, [0, 1, 2])))
    lines = [
        {
            "id": item.id,
            "answer": task.current().options[place],
            "probabilities": [0.5, 0.25, 0.25],
            "counts": [2, 1, 0],
        }
        for place, item in enumerate(sound)
    ]
    (folder / "votes_dev.jsonl").write_bytes(json_file(pick, lines, lines=True))
    sources = read_sources([str(folder / "predictions_dev.json")], sound, data, "dev", folder)
    found = calibrate(Request([], [], "dev", folder), sound, data, sources)
    assert all(0 <= one.before.brier <= 2 and 0 <= one.before.ece <= 1 for one in found.judged)


def archives(pick: Pick, folder: Path) -> None:
    path = folder / "x.zip"
    members = {f"말뭉치/{split}.json": as_json(ITEMS[:1]) for split in ("train", "dev", "test")}
    path.write_bytes(zip_file(pick, members, lambda pick, _: json_file(pick, ITEMS[:2])))
    chosen, _ = splits.choose(splits.search([path]), [path], folder / "out")
    splits.check(chosen)


def calls(pick: Pick, folder: Path) -> None:
    path = folder / "calls.jsonl"
    path.write_bytes(json_file(pick, [{"key": "a", "answer": "b", "seconds": 1.0}] * 2, lines=True))
    found = Calls(lambda message, system: "answer", path, 9)
    found("new", "")
    assert Calls(lambda message, system: "other", path, 9)("new", "") == "answer"


def search_folder(pick: Pick, folder: Path) -> None:
    asked = {"engine": "m", "start": "s", "task": task.current().sha256, "settings": {"steps": 3}}
    (folder / "search.json").write_bytes(json_file(pick, asked) if pick(2) else as_json(asked))
    sound = Step(0, True, "the start", toys.SHORT, "", {"learn": [1, 0], "held": [1, 0]}, 0, 1.5)
    write_step(folder, sound)
    step = folder / "steps/000/step.json"
    step.write_bytes(json_file(pick, json.loads(step.read_text(encoding="utf-8"))))
    if pick(4) == 0:
        (folder / "steps/000/prompt.yaml").write_bytes(changed_bytes(pick, toys.SHORT.encode()))
    with contextlib.suppress(UserError):
        check_folder(folder, asked, free=())
    steps = read_steps(folder)
    assert steps == [] or last_kept(steps).accuracy is not None


def answers(pick: Pick, folder: Path) -> None:
    sound = {
        "choices": [{"message": {"content": "text"}, "finish_reason": "stop"}],
        "error": {"message": "m", "code": 5},
    }
    with contextlib.suppress(UnusableAnswer):
        read_answer(json_file(pick, sound), Address("http://localhost:8000/v1"), 100)


def model_config(pick: Pick, folder: Path) -> None:
    (folder / "config.json").write_bytes(json_file(pick, CONFIG))
    made = make_recipe({"model_id": str(folder), "backbone": "mine"}, "command line")
    known_base(made)
    context_of(made)


def plain(pick: Pick, folder: Path) -> None:
    words = one_of(pick, (JSON_WORDS, YAML_WORDS))
    text = "".join(one_of(pick, words) for _ in range(pick(12)))
    path = folder / "a"
    path.write_bytes(
        text.encode(errors="surrogatepass") if pick(2) else changed_bytes(pick, text.encode(errors="replace"))
    )
    for read in (read_json, lambda path: load_json(path.read_bytes(), "a")):
        with contextlib.suppress(UserError):
            write_json(folder / "b", read(path))
    load_yaml(text, "a")


def terminal(pick: Pick, folder: Path) -> None:
    text = "".join(chr(pick(0x3000)) for _ in range(pick(20))) + str(one_of(pick, VALUES))
    assert not CONTROL.search(harmless(text))
    if not name_problem(text):
        assert not CONTROL.search(text)


READERS: Mapping[str, Reader] = {
    one.__name__: one
    for one in (
        *(
            recipe,
            flags,
            prompt,
            prompt_name,
            chat_template,
            task_file,
            backbone_table,
            scores,
            record,
            run_list,
            items,
        ),
        *(submission, votes, decisions, archives, calls, search_folder, answers, model_config, plain, terminal),
    )
}
