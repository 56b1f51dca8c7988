from collections.abc import Sequence
from pathlib import Path

import pytest

from src import task
from src.console.cli import UserError
from src.data import Item, dump_items, load_data, predictions, sha256, split_path
from src.files.paths import record_path, scores_path
from src.files.writing import write_json, write_text
from src.vote.ballots import (
    Source,
    join_experts,
    read_sources,
)
from tests.made_runs import make_predictions, make_run, make_split, stored


def read(arguments: Sequence[str | Path], data: Path, results: Path, items: list[Item] | None = None) -> list[Source]:
    items = items or load_data(data, "test")[0]
    return read_sources([str(argument) for argument in arguments], items, split_path(data, "test"), "test", results)


def test_a_run_by_name_and_by_folder_is_the_same_ballot(data: Path, results: Path) -> None:
    answers = [0, 1, 2, 0, 1, 2, 0, 1]
    run = make_run(results / "alpha", data, "test", answers, dev_accuracy=0.75)
    (by_name,) = read(["alpha"], data, results)
    (by_folder,) = read([run], data, results)

    assert by_name == by_folder
    assert (by_name.ballot.run, by_name.ballot.dev_accuracy, by_name.note) == ("alpha", 0.75, "")
    assert list(by_name.ballot.answers.values()) == answers
    assert by_name.ballot.logprobs is not None
    assert by_name.sha256 == sha256(scores_path(run, "test"))


def test_a_run_goes_before_another_folder_of_its_name(
    data: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(results / "orpo", data, "test", [0] * 8)
    (tmp_path / "here" / "orpo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    (source,) = read(["orpo"], data, results)
    assert source.file == scores_path(results / "orpo", "test")


def test_files_from_elsewhere(data: Path, results: Path, tmp_path: Path) -> None:
    items, _ = load_data(data, "test")
    predicted = make_predictions(tmp_path / "elsewhere" / "any name.json", items, [2] * 8)
    scores = scores_path(make_run(tmp_path / "elsewhere" / "beta", data, "test", [1] * 8, finished=False), "test")
    from_predictions, from_scores = read([predicted, scores], data, results)

    assert from_predictions.ballot.run == str(predicted)
    assert set(from_predictions.ballot.answers.values()) == {2}
    assert from_predictions.ballot.logprobs is None and from_predictions.ballot.dev_accuracy is None
    assert set(from_scores.ballot.answers.values()) == {1}
    assert from_scores.ballot.logprobs is not None


def test_predictions_stand_in_for_scores(data: Path, results: Path) -> None:
    make_run(results / "alpha", data, "test", [1] * 8, scored=False, dev_accuracy=0.5)
    (source,) = read(["alpha"], data, results)
    assert source.file.name == "predictions_test.json"
    assert source.ballot.logprobs is None and source.ballot.dev_accuracy == 0.5


def test_order_of_the_file_does_not_matter(data: Path, results: Path, tmp_path: Path) -> None:
    items, _ = load_data(data, "test")
    answers = [0, 1, 2, 0, 1, 2, 0, 1]
    (source,) = read([make_predictions(tmp_path / "p.json", items[::-1], answers[::-1])], data, results)
    assert [source.ballot.answers[item.id] for item in items] == answers


def test_other_bytes_of_the_data_are_noted(data: Path, results: Path) -> None:
    make_run(results / "alpha", data, "test", [0] * 8)
    path = split_path(data, "test")
    path.write_bytes(path.read_bytes() + b"\n")
    (source,) = read(["alpha"], data, results)
    assert source.note == "alpha was scored on a test file with the same ids but other bytes than the one given here"


def test_unequal_ids_name_every_file_and_its_ids(data: Path, results: Path, tmp_path: Path) -> None:
    items, _ = load_data(data, "test")
    run = make_run(results / "alpha", data, "test", [0] * 8)
    lines = scores_path(run, "test").read_text(encoding="utf-8").splitlines(keepends=True)
    write_text(scores_path(run, "test"), "".join(lines[1:]))
    longer = make_split(tmp_path / "longer", "test", 9)
    extra = make_predictions(tmp_path / "extra.json", longer, [0] * 9)
    whole = make_predictions(tmp_path / "whole.json", items, [0] * 8)

    with pytest.raises(UserError) as caught:
        read(["alpha", extra, whole], data, results)
    message = str(caught.value)
    assert f"{scores_path(run, 'test')}: found 7 items, expected 8: lacks 1 ({items[0].id})" in message
    assert f"{extra}: found 9 items, expected 8: has 1 ({longer[8].id}) that should not be there" in message
    assert str(whole) not in message and "--split" in message


def test_empty_output_is_no_prediction(data: Path, results: Path, tmp_path: Path) -> None:
    items, _ = load_data(data, "test")
    with pytest.raises(UserError, match="8 of 8 items have no answer"):
        read([split_path(data, "test")], data, results)
    raw = predictions(items, [0] * 8)
    raw[3]["output"] = ""
    write_text(tmp_path / "hole.json", dump_items(raw))
    with pytest.raises(UserError, match=rf"hole.json: 1 of 8 items have no answer .*{items[3].id}"):
        read([tmp_path / "hole.json"], data, results)


def test_options_in_another_order_are_refused(data: Path, results: Path, tmp_path: Path) -> None:
    items, _ = load_data(data, "test")
    raw = predictions(items, [0] * 8)
    inner = raw[2]["input"]
    inner["inference_1"], inner["inference_3"] = inner["inference_3"], inner["inference_1"]
    write_text(tmp_path / "turned.json", dump_items(raw))
    with pytest.raises(UserError, match=f"turned.json: 1 items have other options.*{items[2].id}"):
        read([tmp_path / "turned.json"], data, results)


def test_runs_that_cannot_answer(data: Path, results: Path) -> None:
    make_run(results / "alpha", data, "test", [0] * 8)
    make_run(results / "beta", data, "test", [0] * 8, finished=False)
    gamma = make_run(results / "gamma", data, "test", [0] * 8)
    scores_path(gamma, "test").rename(scores_path(gamma, "dev"))
    (gamma / "predictions_test.json").unlink()

    for argument, message in (
        ("alhpa", "no such run; runs there: alpha, beta, gamma. Did you mean 'alpha'"),
        ("beta", "not finished"),
        ("gamma", "has answers for dev, not for test"),
        ("missing.json", "missing.json: no such file"),
    ):
        with pytest.raises(UserError, match=message):
            read(["alpha", argument], data, results)
    with pytest.raises(UserError, match="given more than once"):
        read(["alpha", results / "alpha"], data, results)


def test_data_is_a_folder_or_a_file(data: Path, tmp_path: Path) -> None:
    from_folder, path = load_data(data, "test")
    assert path == split_path(data, "test")
    assert load_data(path, "dev") == (from_folder, path)
    with pytest.raises(UserError, match="prepare_data"):
        load_data(tmp_path, "test")


def make_expert(results: Path, data: Path, category: str, answer: int, name: str = "") -> Path:
    run = make_run(results / (name or f"expert-{category}"), data, "test", [answer] * 8)
    write_json(record_path(run), stored(run) | {"recipe": {"backbone": "polar", "only_category": category}})
    return run


def test_experts_of_the_categories_are_one_voter(data: Path, results: Path) -> None:
    items, _ = load_data(data, "test")
    for number, category in enumerate(task.current().categories):
        make_expert(results, data, category, number % 3)
    make_run(results / "other", data, "test", [2] * 8)
    names = [f"expert-{category}" for category in task.current().categories]
    other, joined = join_experts(read([*names[:2], "other", *names[2:]], data, results), items)
    assert (other.ballot.run, joined.ballot.run) == ("other", "experts-polar")
    assert joined.ballot.answers == {item.id: task.current().categories.index(item.category) % 3 for item in items}
    assert joined.ballot.logprobs and joined.ballot.logprobs.keys() == joined.ballot.answers.keys()
    assert "전제 by expert-전제" in joined.note
    # By itself an expert is evaluated like any run.
    assert read(["expert-동기"], data, results)[0].expert == ("polar", "동기")


def test_experts_that_are_not_complete(data: Path, results: Path) -> None:
    items, _ = load_data(data, "test")
    for category in task.current().categories[:4]:
        make_expert(results, data, category, 0)
    names = [f"expert-{category}" for category in task.current().categories[:4]]
    with pytest.raises(UserError, match="polar has no expert for 반응"):
        join_experts(read(names, data, results), items)
    make_expert(results, data, "원인", 1, "twin")
    with pytest.raises(UserError, match="expert-원인 and twin are both polar's expert for 원인"):
        join_experts(read([*names, "twin"], data, results), items)


def test_the_file_of_the_labels_is_taken_for_one(data: Path, results: Path) -> None:
    items = make_split(data, "dev", 8)
    path = split_path(data, "dev")
    (source,) = read_sources([str(path)], items, path, "dev", results)
    assert "has the label of every item: it looks like the file of the labels" in source.note
    answers = [item.label or 0 for item in items]
    answers[0] = (answers[0] + 1) % 3
    mine = make_predictions(data / "mine.json", items, answers)
    assert read_sources([str(mine)], items, path, "dev", results)[0].note == ""
