import json
import subprocess
import sys
from pathlib import Path

import pytest

from run.evaluate import main
from src.console.cli import UserError
from src.data import Item, sha256
from src.worth.metrics import chance_range, wilson
from tests.conftest import OUTPUTS
from tests.made_runs import add_orders, make_predictions, make_run, make_split, name_data


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Ten items with the labels 0 1 2 0 1 2 0 1 2 0, two of each category."""
    return make_split(tmp_path / "data", "dev", 10)


@pytest.fixture
def predicted(tmp_path: Path, items: list[Item]) -> Path:
    """Predictions that miss items 0 and 4."""
    answers = [item.label or 0 for item in items]
    answers[0], answers[4] = 2, 0
    return make_predictions(tmp_path / "predicted.json", items, answers)


def squeezed(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_one_input(tmp_path: Path, items: list[Item], predicted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(predicted), "--data", str(tmp_path / "data" / "data_dev.json"), "--json", str(tmp_path / "found.json")])
    printed = squeezed(capsys.readouterr().out)
    assert "8/10 80.00% 49.0% to 94.3% 80.00%" in printed
    assert "원인 1/2, 50.0%, 9% to 91%" in printed
    assert "후행사건 2/2, 100.0%, 34% to 100%" in printed
    assert "inference_1 3 0 1 3/4, 75.0%, 30% to 95%" in printed
    assert "inference_2 1 2 0 2/3" in printed
    assert "share of answers 40.0% 20.0% 40.0%" in printed
    low, high = chance_range(10)
    assert f"chance – 33.33% {low:.1%} to {high:.1%}" in printed
    assert "longest option" in printed and "shortest option" in printed and "never read the dialogue" in printed
    assert "missed: 2 items ┏" in printed
    assert f"{items[4].id} 반응 inference_2 inference_1" in printed

    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["data"]["sha256"] == sha256(tmp_path / "data" / "data_dev.json")
    assert found["floors"]["chance"]["accuracy"] == pytest.approx(1 / 3)
    rules = {"longest option", "shortest option", "most alike option"}
    overlaps = {"overlap with dialogue", "overlap with targets"}
    assert set(found["floors"]) == {"chance", "trained on options"} | rules | overlaps
    (result,) = found["inputs"]
    assert (result["name"], result["sha256"]) == (str(predicted), sha256(predicted))
    assert (result["correct"], result["interval"]) == (8, [*wilson(8, 10)])
    assert result["missed"] == [
        {"id": items[place].id, "category": items[place].category, "label": OUTPUTS[label], "answer": OUTPUTS[answer]}
        for place, label, answer in ((0, 0, 2), (4, 1, 0))
    ]


def test_floors_are_those_of_the_options(tmp_path: Path, items: list[Item], predicted: Path) -> None:
    main([str(predicted), "--data", str(tmp_path / "data"), "--json", str(tmp_path / "found.json")])
    floors = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["floors"]
    lengths = [[len(option) for option in item.options] for item in items]
    longest = sum(row.index(max(row)) == item.label for row, item in zip(lengths, items, strict=True))
    assert floors["longest option"]["correct"] == longest


def test_several_inputs_are_compared(
    tmp_path: Path, items: list[Item], predicted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [item.label or 0 for item in items]
    make_run(tmp_path / "results" / "alpha", tmp_path / "data", "dev", labels, dev_accuracy=1.0)
    main(["alpha", str(predicted), "--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")])
    printed = squeezed(capsys.readouterr().out)
    assert "alpha 10/10 100.00%" in printed and "8/10 80.00%" in printed
    assert "alpha 2/2 2/2 2/2 2/2 2/2 100.0% 100.0%" in printed
    assert "missed" not in printed


def made_answers(items: list[Item], right: int) -> list[int]:
    """The first `right` items right, the others wrong."""
    return [((item.label or 0) + (place >= right)) % 3 for place, item in enumerate(items)]


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Five runs, of 40 items 38 to 20 right, each alone right on none that a better one misses."""
    items = make_split(tmp_path / "data", "dev", 40)
    counts = {"alpha": 20, "beta": 36, "gamma": 38, "delta": 21, "epsilon": 36}
    for name, right in counts.items():
        make_run(tmp_path / "results" / name, tmp_path / "data", "dev", made_answers(items, right))
    return ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]


def pair_lines(capsys: pytest.CaptureFixture[str]) -> tuple[str, list[str]]:
    printed = capsys.readouterr().out.split("Who is better?")[1].split("\n")
    return printed[0], [line.strip() for line in printed if line.startswith("  ")]


def test_every_pair_is_tested_on_the_same_items(
    tmp_path: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Intervals of alpha and beta would say so, too; those of 36 and 38 overlap, and nothing tells them apart."""
    monkeypatch.setenv("COLUMNS", "60")
    main(["alpha", "beta", "gamma", *runs, "--json", str(tmp_path / "found.json")])
    head, lines = pair_lines(capsys)
    assert "the same 40 items" in head and "for 3 pairs (all of 3 answers)" in head
    assert lines == [
        "gamma and beta: 2 and 0 items right alone, +5.0 points, p .500, corrected .500: not told apart",
        "gamma and alpha: 18 and 0 items right alone, +45.0 points, p < .001, corrected < .001: gamma is better",
        "beta and alpha: 16 and 0 items right alone, +40.0 points, p < .001, corrected < .001: beta is better",
    ]
    pairs = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["pairs"]
    assert [(pair["one"], pair["other"], pair["better"]) for pair in pairs] == [
        ("gamma", "beta", None),
        ("gamma", "alpha", "gamma"),
        ("beta", "alpha", "beta"),
    ]


def test_many_answers_are_held_against_the_best_or_a_named_one(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["alpha", "beta", "gamma", "delta", "epsilon"]
    main([*names, *runs])
    head, lines = pair_lines(capsys)
    assert len(lines) == 4 and all(line.startswith("gamma and ") for line in lines)
    assert "for 10 pairs (all of 5 answers); shown: those with the best, gamma (--pairs all" in head
    main([*names, *runs, "--pairs", "all"])
    assert len(pair_lines(capsys)[1]) == 10
    main([*names[:3], *runs, "--pairs", "best"])
    assert len(pair_lines(capsys)[1]) == 2
    main([*names, *runs, "--against", "alpha"])
    head, lines = pair_lines(capsys)
    assert len(lines) == 4 and all("alpha" in line for line in lines) and "for 4 pairs (those with alpha)" in head
    assert any(line.endswith("corrected 1.000: not told apart") and "delta" in line for line in lines)
    for wrong in (["--against", "zeta"], ["--against", "alpha", "--pairs", "all"]):
        with pytest.raises(SystemExit):
            main([*names, *runs, *wrong])


def test_a_run_is_held_against_its_own_data(
    tmp_path: Path, items: list[Item], predicted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [item.label or 0 for item in items]
    run = make_run(tmp_path / "results" / "alpha", tmp_path / "data", "dev", labels)
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    record["data"] = {"train": {"path": str(tmp_path / "data" / "data_train.json")}}
    (run / "record.json").write_text(json.dumps(record), encoding="utf-8")
    main([str(predicted), "alpha", "--results", str(tmp_path / "results")])
    assert "10 items of" in capsys.readouterr().out


def test_missed_limits_what_is_printed(
    tmp_path: Path, items: list[Item], predicted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(predicted), "--data", str(tmp_path / "data"), "--missed", "1"])
    printed = capsys.readouterr().out
    assert "missed: 2 items, the first 1" in printed
    assert items[0].id in printed and items[4].id not in printed
    with pytest.raises(SystemExit):
        main([str(predicted), "--missed", "-1"])


def test_all_right(tmp_path: Path, items: list[Item], capsys: pytest.CaptureFixture[str]) -> None:
    perfect = make_predictions(tmp_path / "perfect.json", items, [item.label or 0 for item in items])
    main([str(perfect), "--data", str(tmp_path / "data")])
    assert "missed: 0 items\n" in capsys.readouterr().out


def test_unlabelled_data_is_refused(tmp_path: Path, predicted: Path) -> None:
    make_split(tmp_path / "data", "test", 10, labelled=False)
    with pytest.raises(UserError, match=r"data_test.json: 10 of 10 items have no label.*--split dev"):
        main([str(predicted), "--data", str(tmp_path / "data"), "--split", "test"])


def test_other_ids_are_refused(tmp_path: Path, items: list[Item]) -> None:
    short = make_predictions(tmp_path / "short.json", items[:9], [0] * 9)
    with pytest.raises(UserError, match=rf"short.json: found 9 items, expected 10: lacks 1 \({items[9].id}\)"):
        main([str(short), "--data", str(tmp_path / "data")])


def test_help_shows_the_commands() -> None:
    done = subprocess.run([sys.executable, "-m", "run.evaluate", "--help"], capture_output=True, text=True, check=True)
    assert "python -m run.evaluate qwen2" in done.stdout


def test_the_data_of_the_run_is_the_default(
    tmp_path: Path, items: list[Item], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("src.data.DATA", tmp_path / "nothing")
    run = make_run(tmp_path / "results" / "alpha", tmp_path / "data", "dev", [0] * 10, dev_accuracy=0.4)
    file = tmp_path / "data" / "data_dev.json"
    name_data(run, dev=file)
    for word in ("alpha", str(run), str(run / "predictions_dev.json")):
        main([word, "--results", str(tmp_path / "results")])
        assert f"10 items of {file}" in capsys.readouterr().out
    name_data(run, dev=tmp_path / "gone" / "data_dev.json")
    with pytest.raises(
        UserError, match=r"neither \S*gone/data_dev.json, which the record of alpha names, nor \S*nothing/"
    ):
        main(["alpha", "--results", str(tmp_path / "results")])
    make_split(tmp_path / "nothing", "dev", 10)
    main(["alpha", "--results", str(tmp_path / "results")])
    assert "gone/data_dev.json, which the record of alpha names, is gone; the items are" in capsys.readouterr().out


def test_six_orders_are_evaluated_when_asked_for(
    tmp_path: Path, items: list[Item], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "results" / "alpha", tmp_path / "data", "dev", [0] * 10, dev_accuracy=0.4)
    add_orders(run, tmp_path / "data", "dev", [item.label or 0 for item in items])
    where = ("--data", str(tmp_path / "data"), "--results", str(tmp_path / "results"))
    main(["alpha", *where])
    said = squeezed(capsys.readouterr().out)
    assert "alpha 4/10" in said and "scores of 6 orders on dev, too, but not on test: --orders 6" in said
    main(["alpha", *where, "--orders", "6"])
    assert "alpha 10/10" in squeezed(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["nobody", "begun", "nothing.json"])
def test_a_run_that_is_not_there_is_told_before_its_data(tmp_path: Path, name: str) -> None:
    (tmp_path / "results" / "begun").mkdir(parents=True)
    words = "no such run|is not finished|no such file. Allowed: a run's name"
    with pytest.raises(UserError, match=words):
        main([name, "--results", str(tmp_path / "results")])
