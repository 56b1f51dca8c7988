import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from run.evaluate import main as evaluate
from run.test import main
from run.train import main as train
from run.vote import main as vote
from src import task
from src.console.cli import UserError, run_main
from src.data import dump_items
from src.files.paths import record_path
from src.files.writing import write_json
from src.score.item_scores import read_scores
from tests.commands import leave_undrawn
from tests.conftest import make_item, odd_items
from tests.made_runs import make_split, stored

pytestmark = pytest.mark.trains

Folder = Callable[[str], Path]
METHODS = ("lora", "qlora", "full")


OTHER_TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Folder) -> Path:
    """`data/` (8 train, 6 dev, 4 unlabelled test items), `results/` with a run of the polar toy per method."""
    from tests import toys

    place = tmp_path_factory.mktemp("trained")
    for split, count in (("train", 8), ("dev", 6), ("test", 4)):
        make_split(place / "data", split, count, labelled=split != "test")
    (place / "short.yaml").write_text(toys.SHORT, encoding="utf-8")
    for method in METHODS:
        where = ("--data", str(place / "data"), "--save_dir", str(place / "results" / method), "--device", "cpu")
        small = ("--epoch", "1", "--batch_size", "2", "--lr", "3e-3", "--prompt", str(place / "short.yaml"))
        with pytest.MonkeyPatch.context() as patch:
            leave_undrawn(patch)
            model = str(backbone_folder("polar"))
            train(["--model_id", model, "--backbone", "polar", "--method", method, *where, *small])
    (place / "short.yaml").write_text("gone: since the training", encoding="utf-8")
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to change: the runs are found by name."""
    shutil.copytree(trained, tmp_path / "place")
    for module in ("run.test", "src.files.paths"):
        monkeypatch.setattr(f"{module}.RESULTS", tmp_path / "place" / "results")
    return tmp_path / "place"


def scored(place: Path, run: str | Path, *more: str) -> None:
    main(["--model_id", str(run), "--data", str(place / "data"), "--device", "cpu", *more])


def problem_of(place: Path, run: str | Path, *more: str) -> str:
    with pytest.raises(UserError) as caught:
        scored(place, run, *more)
    return str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_by_its_name_scores_as_in_training(method: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = place / "results" / method
    before = {file: (run / file).read_bytes() for file in ("scores_dev.jsonl", "predictions_dev.json")}
    old = stored(run)
    scored(place, method, "--split", "dev", "test")
    assert {file: (run / file).read_bytes() for file in before} == before
    record = stored(run)
    timeless = [
        {k: v for k, v in one["splits"]["dev"].items() if k not in ("seconds", "data")} for one in (old, record)
    ]
    assert timeless[0] == timeless[1]
    assert {key: value for key, value in record.items() if key != "splits"} == {
        k: v for k, v in old.items() if k != "splits"
    }
    test = record["splits"]["test"]
    assert (test["items"], test["accuracy"], test["orders"]) == (4, None, 1)
    said = capsys.readouterr().out
    assert f"{method}, dev: 6 items, 1 order, " in said and "no labels, so no accuracy" in said
    assert [one["id"] for one in json.loads((run / "predictions_test.json").read_text(encoding="utf-8"))] == [
        f"made-{number:04d}" for number in range(4)
    ]


def test_a_run_by_its_path_and_a_file_of_its_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = place / "results" / "lora"
    # The official test file lacks the key; it may be elsewhere, and the answer too.
    mine = place / "official.json"
    mine.write_text(dump_items([make_item(number, output=...) for number in (2, 1)]), encoding="utf-8")
    main(
        ["--model_id", str(run), "--data", str(mine), "--output", str(place / "out" / "answer.json"), "--device", "cpu"]
    )
    answers = json.loads((place / "out" / "answer.json").read_text(encoding="utf-8"))
    assert answers == json.loads((run / "predictions_test.json").read_text(encoding="utf-8"))
    assert [one["id"] for one in answers] == ["made-0002", "made-0001"]
    assert all(one["output"] in ("inference_1", "inference_2", "inference_3") for one in answers)
    # Scores of other data go with a word.
    scored(place, run, "--split", "test")
    assert "test: the scores of 2 items of another file in" in capsys.readouterr().out
    scored(place, run, "--split", "test")
    assert "of another file" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        scored(place, run, "--output", str(mine / "answer.json"))
    assert "official.json is a file, where a folder is needed" in capsys.readouterr().err
    assert "--output and a --data file go with one --split" in problem_of(
        place, run, "--split", "dev", "test", "--output", "x.json"
    )


def test_six_orders_lie_beside_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = place / "results" / "full"
    before = {file: (run / file).read_bytes() for file in ("scores_dev.jsonl", "predictions_dev.json")}
    one = read_scores(run / "scores_dev.jsonl")
    scored(place, "full", "--split", "dev", "--orders", "6")
    assert {file: (run / file).read_bytes() for file in before} == before
    assert (run / "predictions_dev.6orders.json").is_file()
    six = read_scores(run / "scores_dev.6orders.jsonl")
    assert {row.orders for row in six} == {task.current().all_orders}
    for row, single in zip(six, one, strict=True):
        assert row.logits[0] == pytest.approx(single.logits[0], abs=1e-4)
    record = stored(run)
    assert (record["splits"]["dev"]["orders"], record["splits_6orders"]["dev"]["orders"]) == (1, 6)
    assert "full, dev: 6 items, 6 orders, " in capsys.readouterr().out


def test_six_orders_of_a_run_of_before_make_way_for_one(place: Path) -> None:
    """They were kept in the place of one order's."""
    run = place / "results" / "full"
    scored(place, "full", "--split", "dev", "--orders", "6")
    record = stored(run)
    record["splits"]["dev"] = record.pop("splits_6orders")["dev"]
    write_json(record_path(run), record)
    for name in ("scores_dev{}.jsonl", "predictions_dev{}.json"):
        (run / name.format(".6orders")).replace(run / name.format(""))
    six = (run / "scores_dev.jsonl").read_bytes()
    scored(place, "full", "--split", "dev")
    record = stored(run)
    assert (record["splits"]["dev"]["orders"], record["splits_6orders"]["dev"]["orders"]) == (1, 6)
    assert (run / "scores_dev.6orders.jsonl").read_bytes() == six
    assert len(read_scores(run / "scores_dev.jsonl")[0].orders) == 1


def test_an_untrained_model(place: Path, backbone_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    model, run = backbone_folder("qwen2"), place / "results" / "base-untrained"
    flags = ("--backbone", "qwen2", "--name", "base", "--prompt", "plain")
    scored(place, model, "--split", "dev", *flags)
    record = stored(run)
    assert (record["training"], record["trainable_parameters"], record["data"]) == (None, 0, {})
    assert (record["prompt"]["name"], record["recipe"]["method"]) == ("plain", "lora")
    assert record["splits"]["dev"]["items"] == 6 and set(record["splits"]) == {"dev"}
    assert sorted(path.name for path in run.iterdir()) == ["predictions_dev.json", "record.json", "scores_dev.jsonl"]
    # Another split joins it; other settings under the name do not.
    scored(place, model, *flags)
    assert set(stored(run)["splits"]) == {"dev", "test"}
    other = (*flags[:-1], "korean")
    assert "holds scores under other settings (prompt, prompt). Delete it" in problem_of(place, model, *other)
    # It can be named as any other run, and goes on as it was made.
    scored(place, "base-untrained", "--split", "dev", "--orders", "6")
    assert stored(run)["splits_6orders"]["dev"]["orders"] == 6 and set(stored(run)["splits"]) == {
        "dev",
        "test",
    }
    scored(place, model, "--split", "dev", *flags)
    assert stored(run)["splits_6orders"]["dev"]["orders"] == 6
    assert "Vote: python -m run.vote" in capsys.readouterr().out


def test_what_is_odd_is_said_in_a_line_and_scored_like_the_rest(
    place: Path, backbone_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = odd_items(4, output="")
    path = place / "data" / "data_test.json"
    path.write_text(json.dumps(raw), encoding="utf-16")
    scored(place, backbone_folder("qwen2"), "--name", "odd", "--prompt", "plain")
    told = [line for line in capsys.readouterr().out.splitlines() if "odd, and carried on" in line]
    assert len(told) == 1 and told[0].startswith(f"{path}: odd, and carried on: encoding 1, unknown-key 4, id-number 4")
    run = place / "results" / "odd-untrained"
    assert [row.id for row in read_scores(run / "scores_test.jsonl")] == ["9000", "9001", "9002", "9003"]
    written = json.loads((run / "predictions_test.json").read_text(encoding="utf-8"))
    assert [one | {"output": ""} for one in written] == raw


def test_an_untrained_model_on_some_items(place: Path, backbone_folder: Folder) -> None:
    model = backbone_folder("kogemma")
    main(["--model_id", str(model), "--data", str(place / "data"), "--device", "cpu", "--split", "dev", "--limit", "2"])
    (run,) = (place / "results").glob("*-untrained")
    assert len(read_scores(run / "scores_dev.jsonl")) == stored(run)["splits"]["dev"]["items"] == 2


def test_the_settings_of_a_trained_run_are_its_own(place: Path) -> None:
    message = problem_of(place, "lora", "--prompt", "korean", "--seed", "3", "--limit", "2")
    assert "is a trained run and is scored whole, with the settings in its record; leave out " in message
    assert all(flag in message for flag in ("--prompt", "--seed", "--limit")) and "--model_id" not in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["letters"].update(A=5), "the letters' token ids changed since the run was made"),
        (lambda record: record["template"].update(sha256="0"), "the chat template changed since the run was made"),
        (lambda record: record["template"].update(system_turn="folded"), "the handling of the system turn changed"),
    ],
)
def test_a_run_is_read_at_the_tokens_it_was_trained_at(
    change: Callable[[dict[str, Any]], Any], message: str, place: Path
) -> None:
    run = place / "results" / "lora"
    record = stored(run)
    change(record)
    write_json(record_path(run), record)
    before = (run / "scores_dev.jsonl").read_bytes()
    assert message in problem_of(place, "lora", "--split", "dev")
    assert (run / "scores_dev.jsonl").read_bytes() == before


def test_a_template_that_changed_in_the_run(place: Path) -> None:
    run = place / "results" / "lora"
    before = (run / "scores_dev.jsonl").read_bytes()
    # The tokenizer that the run kept gains a template of its own; the run was trained under the recipe's.
    (run / "adapter" / "chat_template.jinja").write_text(OTHER_TEMPLATE, encoding="utf-8")
    scored(place, "lora", "--split", "dev")
    assert (run / "scores_dev.jsonl").read_bytes() == before
    record = stored(run)
    record["template"]["source"] = "tokenizer"
    write_json(record_path(run), record)
    assert "the chat template changed" in problem_of(place, "lora", "--split", "dev")


def test_what_is_rendered_is_what_was_rendered_in_training(place: Path) -> None:
    run = place / "results" / "lora"
    record = stored(run)
    assert {"source", "system_turn", "sha256", "date", "arguments", "text_sha256", "ids_sha256"} == set(
        record["template"]
    )
    for key, words in (("text_sha256", "the text that prompt and chat"), ("ids_sha256", "the token ids of that text")):
        write_json(record_path(run), {**record, "template": {**record["template"], key: "0" * 64}})
        assert f"{words}" in problem_of(place, "lora", "--split", "dev")
    # Older records hold neither.
    older = {key: record["template"][key] for key in ("source", "system_turn", "sha256")}
    write_json(record_path(run), {**record, "template": older})
    scored(place, "lora", "--split", "dev")


def test_a_run_of_an_older_version_is_scored(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its record is as commit 5139f1e wrote it: fewer settings, less of the template, no task, and no data's path."""
    run = place / "results" / "lora"
    record, before = stored(run), (run / "scores_dev.jsonl").read_bytes()
    del record["task"], record["splits"]["dev"]["data"]
    for key in ("date", "arguments", "text_sha256", "ids_sha256"):
        del record["template"][key]
    for key in ("tokenizer_revision", "reasoning", "order", "share_prefixes"):
        del record["recipe"][key]
    write_json(record_path(run), record)
    scored(place, "lora", "--split", "dev", "test")
    assert (run / "scores_dev.jsonl").read_bytes() == before
    found = stored(run)
    assert list(found) == list(record) and found["recipe"] == record["recipe"] and "date" not in found["template"]
    assert found["splits"]["test"]["items"] == 4
    assert "unknown to this version" not in capsys.readouterr().out
    scored(place, "lora", "--other_prompt", "korean+cot", "--split", "dev")
    assert stored(place / "results" / "lora-korean+cot")["splits"]["dev"]["items"] == 6


def test_a_run_of_a_later_version_is_scored_and_loses_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = place / "results" / "lora"
    record, before = stored(run), (run / "scores_dev.jsonl").read_bytes()
    record |= {"report": {"pages": 2}}
    record["recipe"]["temperature"] = 0.5
    record["template"]["language"] = "ko"
    record["splits"]["dev"]["calibration"] = [0.5]
    write_json(record_path(run), record)
    scored(place, "lora", "--split", "test")
    assert "kept as they are: report, recipe.temperature, template.language, splits.dev.cal" in capsys.readouterr().out
    found = stored(run)
    del found["splits"]["test"]
    assert found == record and (run / "scores_dev.jsonl").read_bytes() == before
    scored(place, "lora", "--other_prompt", "korean+cot", "--split", "dev")
    other = stored(place / "results" / "lora-korean+cot")
    assert other["report"] == {"pages": 2} and other["recipe"]["temperature"] == 0.5


def test_a_run_of_another_task_is_not_scored(place: Path) -> None:
    text = (Path(__file__).parents[2] / "resource" / "task.yaml").read_text(encoding="utf-8")
    (place / "mine.yaml").write_text(text.replace("name: 대화 맥락 추론", "name: 내 과제"), encoding="utf-8")
    try:
        said = problem_of(place, "lora", "--task", str(place / "mine.yaml"))
    finally:
        task.use(None)
    assert "results/lora is of the task 대화 맥락 추론, and not of 내 과제. Give the file of its task: --task" in said


def test_a_number_of_orders_that_is_not_balanced(place: Path) -> None:
    assert "--orders: found 4, allowed for 3 options: 1, 3" in problem_of(place, "lora", "--orders", "4")
    scored(place, "lora", "--split", "dev", "--orders", "3")
    run = place / "results" / "lora"
    assert stored(run)["splits_3orders"]["dev"]["orders"] == 3
    assert {len(one.orders) for one in read_scores(run / "scores_dev.3orders.jsonl")} == {3}


def test_items_longer_than_the_context(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = {"speaker": 1, "utterance": "가나다 " * 2000, "utterance_id": "x"}
    long = make_item(7, output="", conversation=[turn], reference_id=["x"])
    (place / "data" / "data_test.json").write_text(dump_items([make_item(1), long]), encoding="utf-8")
    monkeypatch.setattr("src.model.load.load_run", lambda *given, **keys: pytest.fail("no need to load the model"))
    assert "polar: 1 item is longer than the model's context of 1024 tokens: made-0007 (" in problem_of(place, "full")


def test_runs_that_cannot_be_scored(place: Path, tmp_path: Path) -> None:
    unfinished = place / "results" / "unfinished"
    unfinished.mkdir()
    (unfinished / "recipe.yaml").write_text("backbone: polar\n", encoding="utf-8")
    assert "unfinished is not finished" in problem_of(place, "unfinished")
    lost = place / "results" / "lora"
    (lost / "adapter").rename(place / "elsewhere")
    told = problem_of(place, "lora")
    assert "lora/record.json speaks of: adapter/adapter_config.json is gone; " in told
    with pytest.raises(UserError, match=r"give a --recipe .* or a --model_id"):
        main(["--data", str(place / "data")])
    assert f"there is no folder {tmp_path / 'no' / 'such'}." in problem_of(place, tmp_path / "no" / "such")
    (place / "results" / "full" / "model" / "model.safetensors").write_bytes(b"")
    assert "full/record.json speaks of: model/model.safetensors has 0 bytes" in problem_of(place, "full")


def test_the_base_of_an_adapter_that_is_gone(place: Path) -> None:
    record = stored(place / "results" / "lora")
    record["recipe"]["model_id"] = str(place / "gone")
    write_json(place / "results" / "lora" / "record.json", record)
    assert f"there is no folder {place / 'gone'}." in problem_of(place, "lora")
    # All of a fully trained model is in its run.
    record = stored(place / "results" / "full")
    record["recipe"]["model_id"] = str(place / "gone")
    write_json(place / "results" / "full" / "record.json", record)
    scored(place, "full")


@pytest.mark.parametrize("method", [pytest.param("lora", marks=pytest.mark.thorough), "qlora"])
def test_merging(method: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored(place, method, "--split", "dev", "--merge", str(place / "merged"))
    said = capsys.readouterr().out
    assert "merged: 0 of 6 answers changed, log-probabilities by at most 0.00" in said
    # It stands alone: model, tokenizer and template in one folder.
    flags = ("--split", "dev", "--name", "alone", "--backbone", "alone")
    (place / "short.yaml").write_text(
        yaml.safe_dump(yaml.safe_load(stored(place / "results" / method)["prompt"]["text"])), encoding="utf-8"
    )
    scored(place, place / "merged", *flags, "--prompt", str(place / "short.yaml"))
    alone = read_scores(place / "results" / "alone-untrained" / "scores_dev.jsonl")
    for one, other in zip(alone, read_scores(place / "results" / method / "scores_dev.jsonl"), strict=True):
        assert one.logits[0] == pytest.approx(other.logits[0], abs=1e-3)
    assert "merged exists already; give a new folder" in problem_of(place, method, "--merge", str(place / "merged"))
    assert "full has no adapter; its method is full" in problem_of(place, "full", "--merge", str(place / "x"))


def test_a_mistyped_run_is_named_with_the_nearest(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.model.hub.RESULTS", place / "results")
    (place / "results" / "vote").mkdir()
    write_json(place / "results" / "vote" / "record.json", {})
    said = problem_of(place, "qlroa")
    assert "There is no run qlroa either; runs here: " in said and said.endswith("Did you mean 'qlora'?")
    assert "vote" not in said


def test_one_message(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if not torch.cuda.is_available():
        command = ["--model_id", "lora", "--data", str(place / "data"), "--device", "cuda"]
        assert run_main(lambda: main(command)) == 2
        assert capsys.readouterr().err.startswith("error: --device cuda: there is no GPU")


# Other prompts, and reasoning


def test_a_trained_run_under_another_prompt(place: Path) -> None:
    before = (place / "results" / "lora" / "record.json").read_bytes()
    assert "was not trained with: --other_prompt korean" in problem_of(place, "lora", "--prompt", "korean")
    scored(place, "lora", "--other_prompt", "korean+cot", "--split", "dev")
    there = place / "results" / "lora-korean+cot"
    record = stored(there)
    assert (record["run"], record["weights"], record["recipe"]["prompt"]) == (there.name, "lora", "korean+cot")
    assert record["prompt"]["name"] == "korean+cot" and record["training"] == stored(place / "results/lora")["training"]
    assert list(record["splits"]) == ["dev"] and not (there / "adapter").exists()
    assert (place / "results" / "lora" / "record.json").read_bytes() == before
    # It is a run like any other: found by its name, scored with its own prompt.
    own, theirs = (read_scores(place / "results" / name / "scores_dev.jsonl") for name in (there.name, "lora"))
    assert [row.logits for row in own] != [row.logits for row in theirs]
    scored(place, there.name)
    assert list(stored(there)["splits"]) == ["dev", "test"]
    scored(place, there.name, "--split", "dev")
    assert [row.logits for row in read_scores(there / "scores_dev.jsonl")] == [row.logits for row in own]
    assert "for an untrained model: --prompt korean" in problem_of(place, "base/or/hub", "--other_prompt", "korean")


def test_a_run_on_changed_dialogues(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (place / "results" / "lora" / "record.json").read_bytes()
    scored(place, "lora", "--split", "dev", "--dialogue", "blanked", "shuffled", "swapped")
    said = capsys.readouterr().out
    asked = f"python -m run.evaluate lora --data {place / 'data'}\n"
    assert f"Compare with the run itself: {asked}" in said and "lora-swapped, dev: 6 items" in said
    assert (place / "results" / "lora" / "record.json").read_bytes() == before
    own = stored(place / "results" / "lora")
    logits = {}
    for how in ("blanked", "shuffled", "swapped"):
        there = place / "results" / f"lora-{how}"
        record = stored(there)
        assert (record["run"], record["weights"], record["dialogue"]) == (there.name, "lora", how)
        assert record["splits"]["dev"]["data_sha256"] == own["splits"]["dev"]["data_sha256"]
        assert (record["files"], record["prompt"]) == (own["files"], own["prompt"]) and set(record["splits"]) == {"dev"}
        logits[how] = [row.logits for row in read_scores(there / "scores_dev.jsonl")]
        written = json.loads((there / "predictions_dev.json").read_text(encoding="utf-8"))
        raw = json.loads((place / "data" / "data_dev.json").read_text(encoding="utf-8"))
        assert [one["input"] for one in written] == [one["input"] for one in raw], "the file's own text"
        names = ["predictions_dev.json", "record.json", "scores_dev.jsonl"]
        assert sorted(path.name for path in there.iterdir()) == names
    logits["as it is"] = [row.logits for row in read_scores(place / "results" / "lora" / "scores_dev.jsonl")]
    assert len({str(rows) for rows in logits.values()}) == 4
    # Without a word it goes on as it was made, and other splits and orders join.
    scored(place, "lora-blanked", "--split", "dev", "--orders", "6")
    scored(place, "lora", "--dialogue", "blanked")
    record = stored(place / "results" / "lora-blanked")
    assert record["splits_6orders"]["dev"]["items"] == 6 and set(record["splits"]) == {"dev", "test"}
    six = read_scores(place / "results" / "lora-blanked" / "scores_dev.6orders.jsonl")
    assert [row.logits[0] for row in six] == [pytest.approx(rows[0], abs=1e-4) for rows in logits["blanked"]]
    # The run itself is evaluated with them, and they do not vote.
    capsys.readouterr()
    where = ("--data", str(place / "data"), "--results", str(place / "results"))
    evaluate(["lora", *where, "--json", str(place / "found.json")])
    assert "lora-shuffled: " in capsys.readouterr().out
    found = json.loads((place / "found.json").read_text(encoding="utf-8"))["changed_dialogues"]
    assert [one["name"] for one in found] == ["lora-blanked", "lora-shuffled", "lora-swapped"]
    with pytest.raises(UserError, match=r"lora-blanked \(dialogue blanked\): .* they do not vote"):
        vote(["lora", "lora-blanked", "--split", "dev", *where])


def test_changed_dialogues_that_are_refused(
    place: Path, backbone_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "leave out --dialogue" in problem_of(place, "lora", "--dialogue", "blanked", "--output", "x.json")
    make_split(place / "few", "dev", 3)
    few = ["--model_id", "lora", "--data", str(place / "few"), "--split", "dev", "--dialogue", "swapped"]
    with pytest.raises(UserError, match="there is none to swap it with"):
        main(few)
    model = backbone_folder("qwen2")
    scored(place, model, "--split", "dev", "--name", "base", "--prompt", "plain", "--dialogue", "blanked")
    record = stored(place / "results" / "base-untrained-blanked")
    assert record["dialogue"] == "blanked" and "weights" not in record and record["base_files"]
    assert not (place / "results" / "base-untrained").exists()
    assert "itself, when it is scored, too: python -m run.evaluate base-untrained --data " in capsys.readouterr().out
    told = problem_of(place, "base-untrained-blanked", "--split", "dev", "--dialogue", "swapped")
    assert "base-untrained-blanked is a run on dialogues that are blanked; --dialogue is for the run itself" in told
    (place / "results" / "lora-swapped").mkdir()
    (place / "results" / "lora-swapped" / "recipe.yaml").write_text("backbone: polar\n", encoding="utf-8")
    assert "is a run of its own" in problem_of(place, "lora", "--split", "dev", "--dialogue", "swapped")
    examples = ("--other_prompt", "korean+1shots", "--dialogue", "blanked")
    assert "has examples, and --dialogue is for prompts without" in problem_of(place, "lora", *examples)


def test_examples_come_from_the_split_of_the_record(place: Path) -> None:
    for number, choose in enumerate(("shots", "near")):
        make_split(place / "data", "train", 40)
        scored(place, "lora", "--other_prompt", f"korean+1{choose}", "--split", "dev")
        name = f"lora-korean+1{choose}"
        record = stored(place / "results" / name)
        assert yaml.safe_load(record["prompt"]["text"])["examples"]["count"] == 1
        make_split(place / "data", "train", 41 + number)
        assert "takes its prompt's examples from another" in problem_of(place, name, "--split", "dev")


def test_reasoning_of_a_trained_run(place: Path) -> None:
    chains = ("--reasoning", "--samples", "2", "--max_new_tokens", "4", "--orders", "6")
    assert "needs a `bridge`" in problem_of(place, "lora", *chains)
    assert "--samples: of use with --reasoning only" in problem_of(place, "lora", "--samples", "2")
    scored(place, "lora", "--other_prompt", "korean+cot", *chains, "--split", "dev", "test")
    there = place / "results" / "lora-korean+cot-reasoning2"
    record = stored(there)
    told = record["splits_6orders"]["dev"]["reasoning"]
    assert (told["samples"], told["temperature"], told["seed"], told["chains"]) == (2, 0.7, 42, 6 * 6 * 2)
    assert record["splits_6orders"]["test"]["reasoning"]["chains"] == 4 * 6 * 2 and record["recipe"]["reasoning"]
    lines = [
        json.loads(line) for line in (there / "reasoning_dev.6orders.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [(line["id"], line["order"], line["sample"]) for line in lines[:3]] == [
        ("made-0000", "012", 0),
        ("made-0000", "012", 1),
        ("made-0000", "021", 0),
    ]
    rows = read_scores(there / "scores_dev.6orders.jsonl")
    assert [(row.samples, len(row.orders)) for row in rows] == [(2, 6)] * 6
    scored(place, there.name, "--max_new_tokens", "4", "--split", "dev")  # its record says that it reasons
    assert read_scores(there / "scores_dev.jsonl")[0].samples == 1


def test_an_untrained_model_reasons(place: Path, backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--name", "base", "--prompt", "english+cot", "--split", "dev", "--max_new_tokens", "4")
    scored(place, backbone_folder("qwen2it"), *flags, "--reasoning")
    record = stored(place / "results" / "base-untrained-reasoning")
    assert record["recipe"]["reasoning"] and record["splits"]["dev"]["reasoning"]["temperature"] == 0
    assert "does not fit into the context of 1024" in problem_of(
        place, backbone_folder("qwen2it"), *flags[:-1], "1000", "--reasoning"
    )


def test_training_on_reasoning_and_on_one_category(place: Path, backbone_folder: Folder) -> None:
    raw = [make_item(number) | {"reasoning": f"{number}번째 근거이다."} for number in range(20)]
    (place / "data" / "data_train.json").write_text(dump_items(raw), encoding="utf-8")
    make_split(place / "data", "dev", 10)
    flags = ["--model_id", str(backbone_folder("qwen2it")), "--backbone", "qwen2it", "--data", str(place / "data")]
    flags += ["--prompt", "korean+cot+1shots", "--reasoning", "--only_category", "전제", "--method", "lora"]
    flags += ["--epoch", "1", "--lr", "3e-3", "--save_dir", str(place / "results" / "thinks"), "--device", "cpu"]
    train(flags)
    record = stored(place / "results" / "thinks")
    assert record["data"]["train"]["items"] == 20 and record["training"]["steps"] == 4, "of five categories one"
    assert record["splits"]["dev"]["items"] == 10 and "reasoning" not in record["splits"]["dev"]
    scored(place, "thinks", "--split", "dev", "--max_new_tokens", "5")
    assert stored(place / "results" / "thinks")["splits"]["dev"]["reasoning"]["chains"] == 10
    scored(place, "thinks", "--split", "dev", "--no-reasoning")
    assert stored(place / "results" / "thinks-at-once")["splits"]["dev"]["items"] == 10


# Its own data, and what the help says


def test_the_data_of_the_run_is_the_default(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("src.data.DATA", place / "nothing")
    run = place / "results" / "lora"
    record = stored(run)
    for split in ("train", "dev"):  # the copy's own
        record["data"][split]["path"] = str(place / "data" / f"data_{split}.json")
    record["splits"] = {}
    write_json(record_path(run), record)
    main(["--model_id", "lora", "--split", "dev", "test", "--device", "cpu"])
    said = capsys.readouterr().out
    assert f"test: the items are those of {place / 'data' / 'data_test.json'}\n" in said
    assert stored(run)["splits"]["test"]["data"] == str(place / "data" / "data_test.json")
    file = place / "data" / "data_dev.json"
    file.write_bytes(file.read_bytes() + b"\n")
    main(["--model_id", "lora", "--split", "dev", "--device", "cpu"])
    assert f"dev: {file} has changed since lora was made: sha256 " in capsys.readouterr().out
    (place / "data" / "data_test.json").unlink()
    with pytest.raises(
        UserError, match=r"neither .*data_test.json, which the record of lora names, nor .*nothing/data_t"
    ):
        main(["--model_id", "lora", "--device", "cpu"])


def test_the_help_is_about_scoring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert "--lora_r" not in text and "--epoch" not in text and text.count("\n") < 120
    places = [text.index(words) for words in ("  --split {", "\nreasoning:", "\nan untrained model:", "  --seed X  ")]
    assert places == sorted(places)
    with pytest.raises(SystemExit, match="2"):
        main(["--model_id", "lora", "--lr", "3"])
    assert "It is a setting of training: python -m run.train." in capsys.readouterr().err


def test_what_keeps_a_machine_from_compiling_is_said_before_weights_are_loaded_and_recorded(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from src.model import load
    from src.tree import compiler

    said: list[str] = []
    load_run = load.load_run
    monkeypatch.setattr(compiler, "_reasons", [])
    monkeypatch.setattr(compiler, "stay_eager", lambda: None)
    monkeypatch.setattr(compiler, "obstacle", lambda device: "there is no C compiler (apt-get install gcc)")
    monkeypatch.setattr(
        load, "load_run", lambda *args, **keys: said.append(capsys.readouterr().out) or load_run(*args, **keys)
    )
    main(["--model_id", "lora", "--data", str(place / "data"), "--split", "dev"])
    assert said[0].count("nothing is compiled and no prefixes are shared: there is no C compiler") == 1
    rows = stored(place / "results" / "lora")["splits"]["dev"]["rows"]
    assert rows["obstacle"] == "there is no C compiler (apt-get install gcc)"
    assert "nothing is compiled" not in capsys.readouterr().out
