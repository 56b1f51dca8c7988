"""run.export --to: which items, under which prompt, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from run.export import main
from src.console.cli import UserError
from src.data import sha256
from src.files.writing import write_json
from src.prompt.prompts import parse_prompt
from tests import toys
from tests.conftest import make_item
from tests.made_runs import make_place, name_data, stored
from tests.run.test_export import export

PROMPT = parse_prompt(toys.SHORT, "short")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Data of 8, 6 and 4 items, the last without labels, and a run with a prompt that no file holds."""
    make_place(tmp_path)
    make_record(tmp_path)
    return tmp_path


def make_record(place: Path, text: str = PROMPT.text, **settings: Any) -> Path:
    """The record of the run alpha, with what scoring needs of it."""
    run = place / "results" / "alpha"
    prompt = parse_prompt(text, "made")
    recipe = dataclasses.asdict(toys.recipe(place / "nowhere", "eeve", **settings))
    told = {"name": prompt.name, "text": prompt.text, "sha256": prompt.sha256}
    template = {"source": "tokenizer", "system_turn": "folded", "sha256": "0" * 64}
    record = {"run": "alpha", "recipe": recipe, "prompt": told, "template": template}
    write_json(run / "record.json", {**record, "training": None, "splits": {}})
    name_data(run, **{split: place / "data" / f"data_{split}.json" for split in ("train", "dev")})
    return run


def to(place: Path, tool: str, *words: str) -> Path:
    out = place / "out"
    main([*words, "--to", tool, "--results", str(place / "results"), "--out", str(out)])
    return out


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_gives_its_prompt_its_data_and_its_system_turn(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = to(place, "trl", "alpha")
    found = rows(out / "sft" / "train.jsonl")
    assert len(found) == 8 and len(rows(out / "sft" / "dev.jsonl")) == 6
    assert [turn["role"] for turn in found[0]["prompt"]] == ["user"]
    assert found[0]["prompt"][0]["content"].startswith("고르세요.\n\n")
    assert not (out / "sft" / "test.jsonl").exists()
    printed = capsys.readouterr().out
    assert "test: 4 of 4 items have no label and are left out" in printed
    assert "train 8, dev 6" in printed and "must not be passed on" in printed
    assert "run alpha" in (out / "README.md").read_text(encoding="utf-8")


def test_a_chat_template_of_the_recipe_goes_along(place: Path) -> None:
    run = make_record(place, chat_template=toys.SOLAR)
    assert not (to(place, "llamafactory", "alpha") / "chat_template.jinja").exists()
    record = stored(run)
    record["template"]["source"] = "recipe"
    write_json(run / "record.json", record)
    for file in sorted((place / "out").iterdir()):
        file.unlink()
    out = to(place, "llamafactory", "alpha")
    assert (out / "chat_template.jinja").read_text(encoding="utf-8") == toys.SOLAR
    assert "give the tool chat_template.jinja" in (out / "README.md").read_text(encoding="utf-8")


def test_a_prompt_needs_no_run_and_a_system_turn_can_be_chosen(place: Path) -> None:
    words = ("--prompt", str(place / "short.yaml"), "--data", str(place / "data"))
    out = to(place, "lm-eval", *words, "--split", "dev")
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "dev.jsonl",
        "inference_short_dev.yaml",
        "splits.py",
    ]
    assert rows(out / "dev.jsonl")[1]["system"] == "고르세요." and rows(out / "dev.jsonl")[1]["label"] == 1
    with pytest.raises(UserError, match=r"out is not empty\. Give another --out"):
        to(place, "lm-eval", *words, "--system_turn", "folded")
    main([*words, "--to", "lm-eval", "--system_turn", "folded", "--out", str(place / "other")])
    assert rows(place / "other" / "dev.jsonl")[1]["system"] == ""


def test_a_folder_that_a_failure_left_empty_is_taken(place: Path) -> None:
    (place / "out" / "sft").mkdir(parents=True)
    assert rows(to(place, "trl", "alpha") / "sft" / "dev.jsonl")


def test_an_item_without_label_is_left_out_and_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = place / "data" / "data_dev.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    raw[2]["output"] = ""
    write_json(file, raw)
    out = to(place, "llamafactory", "alpha", "--split", "dev", "--data", str(file))
    assert [row["id"] for row in rows(out / "short_dev.jsonl")] == [one["id"] for one in raw if one["output"]]
    assert "dev: 1 of 6 items have no label and are left out" in capsys.readouterr().out


def test_a_run_of_one_category_exports_what_it_was_trained_on(place: Path) -> None:
    make_record(place, only_category="전제")
    out = to(place, "trl", "alpha")
    assert {row["category"] for row in rows(out / "sft" / "train.jsonl")} == {"전제"}


def test_worked_examples_are_of_the_training_split(place: Path) -> None:
    shots = toys.SHORT.replace("name: short", "name: short+1shots")
    (place / "shots.yaml").write_text(shots + "\nexamples: {count: 1}\n", encoding="utf-8")
    for split in ("train", "dev"):  # of every category several, from other dialogues
        raw = [make_item(number) for number in range(30)]
        write_json(place / "data" / f"data_{split}.json", raw)
    words = ("--prompt", str(place / "shots.yaml"), "--data", str(place / "data"), "--split", "dev")
    found = rows(to(place, "trl", *words) / "sft" / "dev.jsonl")
    assert {tuple(turn["role"] for turn in row["prompt"]) for row in found} == {("system", "user", "assistant", "user")}


def test_a_run_has_the_examples_that_it_was_trained_with(place: Path) -> None:
    run = make_record(place, text=PROMPT.text + "examples: {count: 1}\n")
    train = place / "data" / "data_train.json"
    write_json(train, [make_item(number) for number in range(30)])
    name_data(run, train=train, dev=place / "data" / "data_dev.json")
    with pytest.raises(UserError, match=r"takes its prompt's examples from another .*data_train\.json"):
        to(place, "trl", "alpha")
    record = stored(run)
    record["prompt"]["examples_sha256"] = sha256(train)
    write_json(run / "record.json", record)
    found = rows(to(place, "trl", "alpha") / "sft" / "dev.jsonl")
    assert [turn["role"] for turn in found[0]["prompt"]] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--to", "trl"], "--to trl takes one prompt: that of one RUN, or --prompt NAME"),
        (["alpha", "--prompt", "korean", "--to", "trl"], "takes one prompt"),
        (["alpha", "--to", "trl", "--orders", "6"], "options stand in the file's own order, so leave out --orders"),
        (["alpha", "--to", "trl", "--inspect"], "--inspect answers: leave one of them out"),
        (["alpha", "--to", "trl", "--split", "test"], "there is no item with a label in test of"),
        (["alpho", "--to", "trl"], r"no such run.*Did you mean 'alpha'"),
        (["alpha", "--prompt", "korean"], "--prompt and --system_turn go with --to"),
        ([], r"name a run, or the tool to export to: --to trl | llamafactory | lm-eval"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(place: Path, words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        export(place, *words)
    assert not (place / "out").exists()


def test_runs_without_a_prompt_of_their_own_are_refused(place: Path) -> None:
    make_record(place, text=PROMPT.text + "bridge: 그래서 정답의 기호는 다음과 같습니다.\n", reasoning=True)
    with pytest.raises(UserError, match="reasons before it answers, which is not exported"):
        to(place, "trl", "alpha")
    write_json(place / "results" / "alpha" / "record.json", {"run": "vote", "splits": {}})
    with pytest.raises(UserError, match="is a vote, or another folder of answers alone"):
        to(place, "trl", "alpha")
