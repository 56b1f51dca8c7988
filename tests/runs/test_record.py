"""The record: what is written, what of older and later versions is read, and what is refused."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from src import task
from src.console.cli import UserError
from src.files.paths import record_path
from src.files.writing import write_json
from src.runs.facts import DataFile, PromptFacts, Result, TaskFacts, TemplateFacts, VoteResult
from src.runs.record import OtherTask, Record, results_key

OLD = {
    "run": "polar",
    "recipe": {"name": "polar", "backbone": "polar", "model_id": "x2bee/POLAR-14B-v0.2", "method": "lora", "lr": 0.001},
    "prompt": {"name": "entry", "sha256": "aa", "text": "system: …\n"},
    "template": {"source": "recipe", "system_turn": "own", "sha256": "bb"},
    "base_revision": None,
    "versions": {"python": "3.11.7", "torch": "2.8.0"},
    "commit": "5139f1e",
    "data": {
        "train": {"path": "resource/data/data_train.json", "sha256": "11", "items": 758},
        "dev": {"path": "resource/data/data_dev.json", "sha256": "22", "items": 151},
    },
    "trainable_parameters": 7,
    "parameters": 70,
    "training": {"optimizer": "fp32", "steps": 3, "evaluations": [], "loss": []},
    "device": "cpu, 2 threads",
    "splits": {
        "dev": {
            "items": 151,
            "orders": 6,
            "seconds": 2.5,
            "data_sha256": "22",
            "rows": {"kind": "tree", "guard": None},
            "accuracy": 0.75,
            "correct": 113,
            "interval": [0.67, 0.81],
        }
    },
    "letters": {"A": 1, "B": 2, "C": 3},
    "peak_memory_bytes": 1,
    "seconds": 9.0,
}
"""What commit 5139f1e wrote, with scores of six orders in the place of one order's."""

LATER = json.loads(json.dumps(OLD)) | {"report": {"pages": 3}, "splits_12orders": {}}
LATER["recipe"]["temperature"] = 0.5
LATER["prompt"]["language"] = "ko"
LATER["splits"]["dev"]["calibration"] = [0.1, 0.2]
"""The same with keys that this version does not know."""


@pytest.fixture(autouse=True)
def official_afterwards() -> Iterator[None]:
    yield
    task.use(None)


def written(folder: Path, record: Any) -> Path:
    write_json(record_path(folder), record)
    return folder


def stored(folder: Path) -> dict[str, Any]:
    """What the record holds beside its own digest, which is its last key when the record is new."""
    found = json.loads(record_path(folder).read_text(encoding="utf-8"))
    assert re.fullmatch("[0-9a-f]{64}", found.pop("sha256"))
    return found


def new_record() -> Record:
    return Record(
        run="polar",
        settings={"name": "polar", "backbone": "polar", "tokenizer": None},
        prompt=PromptFacts(name="entry", sha256="aa", text="…"),
        template=TemplateFacts(
            source="recipe", system_turn="own", sha256="bb", arguments={}, text_sha256="cc", ids_sha256="dd"
        ),
        base_revision=None,
        versions={"python": "3.11"},
        commit=None,
        task=TaskFacts.current(),
        data={"train": DataFile(path="data_train.json", sha256="11", items=8)},
        trainable_parameters=7,
        parameters=70,
        training={},
        device="cpu",
    )


RESULT = Result(
    items=4, orders=1, seconds=1.0, data="data_dev.json", data_sha256="22", rows={}, accuracy=0.5, correct=2
)
RUN_KEYS = [
    *("run", "recipe", "prompt", "template", "base_revision", "versions", "commit", "task", "data"),
    *("trainable_parameters", "parameters", "training", "device", "splits", "letters", "peak_memory_bytes", "seconds"),
]
RESULT_KEYS = ["items", "orders", "seconds", "data", "data_sha256", "rows", "accuracy", "correct", "interval"]


# What is written


def test_the_keys_of_a_run_and_their_order(tmp_path: Path) -> None:
    record = new_record().with_result("dev", RESULT)
    replace(record, letters={"A": 1}, peak_memory_bytes=1, seconds=2.0).save(tmp_path)
    found = stored(tmp_path)
    assert list(found) == RUN_KEYS
    assert list(found["prompt"]) == ["name", "sha256", "text"]
    assert list(found["template"]) == [
        *("source", "system_turn", "sha256", "date", "arguments", "text_sha256", "ids_sha256")
    ]
    assert list(found["data"]["train"]) == ["path", "sha256", "items"]
    assert list(found["splits"]["dev"]) == RESULT_KEYS
    # What is scored later stands behind, in the file as in the split.
    record = Record.load(tmp_path)
    record = record.with_result("dev", replace(RESULT, orders=6, reasoning={"chains": 1}), 6)
    record.with_result("test", RESULT).save(tmp_path)
    found = stored(tmp_path)
    assert list(found) == [*RUN_KEYS, "splits_6orders"]
    assert list(found["splits"]) == ["dev", "test"]
    assert list(found["splits_6orders"]["dev"]) == [*RESULT_KEYS, "reasoning"]


def test_the_keys_of_a_run_with_a_tokenizer_of_its_own_and_with_examples() -> None:
    record = replace(new_record(), settings={"tokenizer": "made/words"}, prompt=PromptFacts(examples_sha256="ee"))
    keys = list(record.as_json())
    assert keys[keys.index("base_revision") + 1] == "tokenizer_revision"
    assert list(record.as_json()["prompt"]) == ["name", "sha256", "text", "examples_sha256"]


def test_the_keys_of_a_run_beside_another(tmp_path: Path) -> None:
    record = new_record().with_result("dev", RESULT).with_result("dev", RESULT, 6)
    replace(record, letters={"A": 1}, peak_memory_bytes=1, seconds=2.0).save(tmp_path)
    made = replace(Record.load(tmp_path).without_results(), run="polar-korean", weights="polar")
    own = [key for key in RUN_KEYS if key != "splits"]
    assert list(made.as_json()) == [*own, "weights", "splits"]
    assert list(made.with_result("dev", RESULT, 6).as_json()) == [*own, "weights", "splits", "splits_6orders"]


def test_the_keys_of_a_vote(tmp_path: Path) -> None:
    result = VoteResult(items=4, rule="…", voters=[{"run": "polar"}], versions={}, commit="c", accuracy=0.5, correct=2)
    Record(run="vote", task=TaskFacts.current()).with_result("dev", result).save(tmp_path)
    found = stored(tmp_path)
    assert list(found) == ["run", "task", "splits"]
    assert list(found["splits"]["dev"]) == [
        *("accuracy", "correct", "interval", "items", "data", "data_sha256", "rule", "orders", "voters", "missing"),
        *("unanimous", "pairs", "decided_by", "versions", "commit"),
    ]
    record = Record.load(tmp_path)
    assert record.is_vote and isinstance(record.splits["dev"], VoteResult)
    assert record.as_json() == found


def test_results_take_the_place_of_earlier_ones_and_keep_what_is_unknown(tmp_path: Path) -> None:
    earlier = Record.load(written(tmp_path, LATER))
    record = replace(new_record(), prompt=PromptFacts(**OLD["prompt"]))  # type: ignore[arg-type]
    made = record.with_results_of(earlier).as_json()
    assert list(made)[:9] == RUN_KEYS[:9]
    assert made["splits"] == LATER["splits"] and made["report"] == {"pages": 3}
    assert made["recipe"]["temperature"] == 0.5 and made["prompt"]["language"] == "ko"


# What is read


def test_a_record_of_an_older_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record.load(written(tmp_path, OLD))
    assert capsys.readouterr().out == ""
    assert (record.recipe.lr, record.recipe.epoch, record.recipe.orpo_beta) == (0.001, 3, 0.1)
    assert (record.splits["dev"].accuracy, record.splits["dev"].orders, record.splits["dev"].data) == (0.75, 6, None)
    assert (record.template.date, record.template.text_sha256, record.prompt.name) == (None, None, "entry")
    assert (record.data["dev"].items, record.letters, record.task) == (151, {"A": 1, "B": 2, "C": 3}, None)
    assert record.results(6) == {} and not record.is_vote
    record.save(tmp_path)
    assert stored(tmp_path) == OLD and list(stored(tmp_path)) == list(OLD)


def test_a_record_of_a_later_version_keeps_its_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record.load(written(tmp_path, LATER))
    Record.load(tmp_path)
    told = "report, recipe.temperature, prompt.language, splits.dev.calibration"
    assert capsys.readouterr().out == f"{tmp_path}/record.json: unknown to this version, and kept as they are: {told}\n"
    assert record.recipe == Record.parse(OLD).recipe
    record.with_result("test", RESULT).save(tmp_path)
    found = stored(tmp_path)
    assert found["splits"].pop("test")["correct"] == 2
    assert found == LATER


def test_a_vote_of_an_older_version_calls_its_commit_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev = {"accuracy": 0.5, "correct": 2, "items": 4, "rule": "…", "voters": [], "git_commit": "5139f1e"}
    old = {"run": "vote", "splits": {"dev": dev}}
    record = Record.load(written(tmp_path, old))
    assert isinstance(vote := record.splits["dev"], VoteResult) and vote.commit == "5139f1e"
    assert capsys.readouterr().out == "" and record.as_json() == old


def test_a_record_with_hardly_anything_in_it(tmp_path: Path) -> None:
    record = Record.load(written(tmp_path, {"splits": {"dev": {"accuracy": None, "items": None}}}))
    assert (record.run, record.splits["dev"].items, record.splits["dev"].accuracy) == (tmp_path.name, 0, None)
    assert record.training is None and record.data == {} and record.is_vote
    assert Record.load(written(tmp_path, {})).splits == {}


def test_the_weights_of_a_run_lie_in_it_or_beside_it() -> None:
    assert new_record().weights_in(Path("results/polar")) == Path("results/polar")
    assert replace(new_record(), weights="polar").weights_in(Path("results/polar-cot")) == Path("results/polar")


def test_the_recipe_has_the_commits_that_were_loaded() -> None:
    record = replace(new_record(), settings={"model_id": "a/b", "revision": "main"}, base_revision="c" * 40)
    assert (record.recipe.revision, record.pinned_recipe.revision) == ("main", "c" * 40)
    assert record.commits == {"base_revision": "c" * 40, "tokenizer_revision": None}


# What is refused


def test_a_run_without_record_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "mini-bllossom").mkdir()
    with pytest.raises(UserError, match=r"mini-bllossom is not finished: it has no record.json"):
        Record.load(tmp_path / "mini-bllossom")
    with pytest.raises(UserError, match=r"no such run; runs there: mini-bllossom. Did you mean 'mini-bllossom'\?"):
        Record.load(tmp_path / "mini-blossom")


@pytest.mark.parametrize("text", ["", '{"run": ', "[]", "null"])
def test_a_damaged_record_is_not_a_record(tmp_path: Path, text: str) -> None:
    record_path(tmp_path).write_text(text)
    with pytest.raises(UserError, match=r"record.json is damaged"):
        Record.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"splits": []}', "splits is no object"),
        ('{"splits": {"dev": 1}}', "splits: dev is no object"),
        ('{"recipe": "polar"}', "recipe is no object"),
        ('{"splits": {"dev": {"accuracy": "high"}}}', "splits: dev: accuracy is 'high'"),
        ('{"splits_6orders": {"dev": {"correct": 9, "items": 4}}}', "splits_6orders: dev: 9 of 4 items are right"),
        ('{"prompt": {"text": 3}}', "prompt: text is 3"),
        ('{"data": {"dev": {"path": ["x"]}}}', r"data: dev: path is \['x'\]"),
        ('{"seconds": "long"}', "seconds is 'long'"),
    ],
)
def test_a_record_of_another_shape_is_damaged(tmp_path: Path, text: str, words: str) -> None:
    record_path(tmp_path).write_text(text)
    with pytest.raises(UserError, match=f"record.json is damaged: {words}"):
        Record.load(tmp_path)


def test_a_record_that_was_changed_is_refused_until_its_digest_is_removed(tmp_path: Path) -> None:
    new_record().with_result("dev", RESULT).save(tmp_path)
    path = record_path(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace('"correct": 2', '"correct": 3'), encoding="utf-8")
    with pytest.raises(UserError, match=r"record\.json: .* sha256 .* an older version .* delete the line of sha256"):
        Record.load(tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith('  "sha256"')), encoding="utf-8")
    assert Record.load(tmp_path).splits["dev"].correct == 3


def test_results_that_another_process_added_are_kept(tmp_path: Path) -> None:
    new_record().with_result("dev", RESULT).save(tmp_path)
    mine = Record.load(tmp_path)
    Record.load(tmp_path).with_result("test", RESULT).save(tmp_path)
    mine.refreshed(tmp_path).with_result("dev", RESULT, 6).save(tmp_path)
    found = Record.load(tmp_path)
    assert set(found.splits) == {"dev", "test"} and set(found.results(6)) == {"dev"}
    assert mine.refreshed(tmp_path / "elsewhere") is mine


def test_a_run_of_another_task_is_refused(tmp_path: Path) -> None:
    other = replace(task.current(), name="날씨 추론", categories=("까닭",))
    run = written(tmp_path / "polar", OLD)
    task.use(other)
    with pytest.raises(
        OtherTask, match=r"polar is of the task 대화 맥락 추론, and not of 날씨 추론\. .*--task resource/task"
    ):
        Record.load(run)
    mine = tmp_path / "mine"
    new_record().save(mine)
    assert Record.load(mine).task == TaskFacts(name="날씨 추론", sha256=other.sha256)
    task.use(None)
    with pytest.raises(OtherTask, match=r"mine is of the task 날씨 추론, and not of 대화 맥락 추론\. .*--task FILE$"):
        Record.load(mine)
    task.use(replace(other, categories=("결과",)))
    with pytest.raises(OtherTask, match=r"mine is of another version of the task 날씨 추론\. .*--task FILE$"):
        Record.load(mine)


def test_results_by_several_orders_have_keys_of_their_own() -> None:
    assert [results_key(count) for count in (1, 6, 24)] == ["splits", "splits_6orders", "splits_24orders"]
    record = Record.parse({"splits_24orders": {"dev": {"items": 3, "accuracy": 1}}})
    assert record.results(24)["dev"].items == 3 and record.splits == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parameters": True}, "parameters is True"),
        ({"versions": {"torch": 2}}, "versions is"),
        ({"letters": {"A": "x"}}, "letters is"),
        ({"weights": "../other"}, "which is no name of a folder"),
        ({"recipe": {"backbone": "polar", "seed": "x"}}, "recipe: seed is 'x'"),
        ({"recipe": {"backbone": ["polar"]}}, "recipe: backbone is"),
        ({"splits": {"dev": {"items": -1}}}, "splits: dev: None of -1 items"),
        ({"splits": {"dev": {"items": 4, "interval": "ab"}}}, "interval is 'ab'"),
        ({"splits": {"dev": {"items": 4, "interval": [0.5]}}}, "interval is"),
        ({"splits": {"dev": {"items": 4, "accuracy": 2}}}, "accuracy 2"),
        ({"template": {"date": 5}}, "template: date is 5"),
    ],
)
def test_a_record_of_other_types_is_damaged(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    written(tmp_path, OLD | change)
    with pytest.raises(UserError, match=f"is damaged: .*{words}"):
        Record.load(tmp_path)


def test_a_record_that_is_written_twice_or_with_numbers_that_change(tmp_path: Path) -> None:
    for text in (
        '{"run": "a", "run": "b"}',
        '{"seconds": 1e400}',
        '{"seconds": ' + "1" * 400 + "}",
        '{"run": "\\ud800"}',
    ):
        record_path(tmp_path).write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"is damaged: (found|half)"):
            Record.load(tmp_path)
